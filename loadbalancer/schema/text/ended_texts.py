"""The error of a text that a worker ended, with the parameter that it is about."""

from __future__ import annotations

from loadbalancer.scheduling.task import TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.errors import ApiError, InvalidRequest, TaskFailed, from_ended

#: Name of the schema in the request, by that of its prompt.
_SCHEMAS = {"input": "text.format.schema"}
_CHAT_SCHEMA = "response_format.json_schema.schema"
#: Where a worker's message begins with the place of the mistake. Others are about the prompt, or the model.
_PLACES = ("json_schema", "tools", "tool_choice", "prompt", "stop_token_ids", "logit_bias")
_MODEL = ("this ", "the JSON schemas ")


def from_ended_text(ended: TaskEnded, prompt: str) -> ApiError:
    """The error of a text that ended before its end. `prompt` is the name of the prompt in the request."""
    if ended.state in (TaskState.EXPIRED, TaskState.CANCELLED):
        return from_ended(ended)
    if ended.kind == "context_length":
        return InvalidRequest(ended.message, param=prompt, code="context_length_exceeded")
    if ended.kind == "invalid":
        return _invalid(ended.message, prompt)
    if ended.kind == "out_of_memory":
        text = f"The text does not fit the memory of the device: {ended.message}"
        return TaskFailed(text, code="out_of_memory")
    return TaskFailed(f"The text could not be generated: {ended.message}")


def _invalid(message: str, prompt: str) -> InvalidRequest:
    place, separator, problem = message.partition(": ")
    if separator and place in _PLACES:
        param = _SCHEMAS.get(prompt, _CHAT_SCHEMA) if place == "json_schema" else place
        return InvalidRequest(f"Invalid value for '{param}': {problem}", param=param)
    return InvalidRequest(message, param=None if message.startswith(_MODEL) else prompt)
