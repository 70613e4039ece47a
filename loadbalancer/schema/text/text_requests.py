"""Parses the requests of the text API by their path."""

from __future__ import annotations

from typing import Any

import msgspec

from loadbalancer.schema.struct_parsing import parse_struct
from loadbalancer.schema.text.chat_request import ChatRequest
from loadbalancer.schema.text.completion_request import CompletionRequest
from loadbalancer.schema.text.response_request import ResponseRequest

CHAT_PATH, COMPLETION_PATH, RESPONSE_PATH = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TextRequest = ChatRequest | CompletionRequest | ResponseRequest
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    CHAT_PATH: msgspec.json.Decoder(ChatRequest),
    COMPLETION_PATH: msgspec.json.Decoder(CompletionRequest),
    RESPONSE_PATH: msgspec.json.Decoder(ResponseRequest),
}
TEXT_PATHS = tuple(_decoders)
#: Name of the prompt in the request, by its path.
PROMPT_PARAMS = {CHAT_PATH: "messages", COMPLETION_PATH: "prompt", RESPONSE_PATH: "input"}


def parse_text(path: str, body: bytes | memoryview) -> Any:
    """Return the request of this path. Raises `InvalidRequest`."""
    request: TextRequest = parse_struct(_decoders[path], body)
    request.check()
    return request
