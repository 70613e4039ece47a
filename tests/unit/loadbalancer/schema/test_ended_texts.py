"""The error of a text that a worker refused names the parameter of the request."""

from __future__ import annotations

import pytest

from loadbalancer.scheduling.task import TaskEnded
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.text.ended_texts import from_ended_text

_SCHEMA = "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("message", "prompt", "param", "text"),
    [
        ("json_schema: it has 3: too many", "messages", _SCHEMA, f"Invalid value for '{_SCHEMA}': it has 3: too many"),
        ("json_schema: bad", "prompt", _SCHEMA, f"Invalid value for '{_SCHEMA}': bad"),
        ("json_schema: bad", "input", "text.format.schema", "Invalid value for 'text.format.schema': bad"),
        ("tools: function 'f': bad", "input", "tools", "Invalid value for 'tools': function 'f': bad"),
        ("tool_choice: bad", "messages", "tool_choice", "Invalid value for 'tool_choice': bad"),
        ("the chat template rejects: no", "messages", "messages", "the chat template rejects: no"),
        ("prompt: 9. No.", "prompt", "prompt", "Invalid value for 'prompt': 9. No."),
        ("stop_token_ids: 9. No.", "messages", "stop_token_ids", "Invalid value for 'stop_token_ids': 9. No."),
        ("logit_bias: 9. No.", "prompt", "logit_bias", "Invalid value for 'logit_bias': 9. No."),
        ("this model has no structured output", "messages", None, "this model has no structured output"),
    ],
)
def test_parameter_of_a_refused_text(message: str, prompt: str, param: str | None, text: str) -> None:
    error = from_ended_text(TaskEnded("a", TaskState.FAILED, "invalid", message), prompt)
    assert (error.status, error.param, error.code, error.message) == (400, param, "invalid_value", text)
