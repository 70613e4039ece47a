"""Resolves any request of the text API. Pure."""

from __future__ import annotations

import msgspec

from configs.settings import Settings
from loadbalancer.access.api_keys import Caller
from loadbalancer.generation.text.chat_spec import chat_spec
from loadbalancer.generation.text.completion_spec import completion_spec
from loadbalancer.generation.text.response_spec import response_echo, response_spec
from loadbalancer.generation.text.text_spec import TextSpec
from loadbalancer.schema.text.chat_request import ChatRequest
from loadbalancer.schema.text.completion_request import CompletionRequest
from loadbalancer.schema.text.response_request import ResponseRequest
from loadbalancer.schema.text.text_requests import TextRequest
from loadbalancer.storage.records import TextOptions
from wire.messages import EngineInfo


def resolve_text(
    request: TextRequest, settings: Settings, engine: EngineInfo | None, random_seed: int, caller: Caller, model: str
) -> TextSpec:
    """Return the complete specification. Raises `InvalidRequest`.

    `engine` is that of the `model`; None until a worker has connected.
    """
    if isinstance(request, ChatRequest):
        return chat_spec(request, settings, engine, random_seed, caller, model)
    if isinstance(request, CompletionRequest):
        return completion_spec(request, settings, engine, random_seed, caller, model)
    return response_spec(request, settings, engine, random_seed, caller, model)


def text_options(request: TextRequest, spec: TextSpec) -> TextOptions:
    """Return what a job keeps of the request for its response."""
    echo = ""
    if isinstance(request, ResponseRequest):
        echo = msgspec.json.encode(response_echo(request, spec.inputs[0])).decode()
    output = spec.output
    return TextOptions(spec.choices, output.tools, output.reasoning, output.parallel_calls, echo)
