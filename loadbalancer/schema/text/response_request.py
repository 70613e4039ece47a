"""`POST /v1/responses`: the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from loadbalancer.schema.predictions import Priority, Timeout
from loadbalancer.schema.text.chat_request import ReasoningEffort, TemplateArguments
from loadbalancer.schema.text.fields import (
    Ignored,
    SamplingFields,
    StreamOptions,
    Unsupported,
    check_stream_options,
    check_supported,
)
from loadbalancer.schema.text.json_bounds import is_absent
from loadbalancer.schema.text.messages import ContentPart, Role
from loadbalancer.schema.text.tools import FunctionName, SchemaFormat

_Schema = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "object", "description": "A JSON Schema."})]
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "context_management": (),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "store": (False,),
    "truncation": ("disabled",),
}
#: What `include` may ask for: the log-probabilities, and what does not exist here.
LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content", "file_search_call.results", "web_search_call.action.sources")


class InputItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An item of the input: a message, a function call of an earlier response, its output, or reasoning."""

    type: Annotated[str, msgspec.Meta(description="`message` by default.")] | None = None
    role: Role | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None
    summary: list[ContentPart] | None = None
    id: Ignored = None
    status: Ignored = None
    phase: Ignored = None
    encrypted_content: Ignored = None
    # What clients add to the items of a response before they send them back.
    caller: Ignored = None
    namespace: Ignored = None
    parsed_arguments: Ignored = None
    async_: Ignored = None
    is_async: Ignored = msgspec.field(default=None, name="async")
    recipient: Ignored = None


class ResponseTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: _Schema = msgspec.field(default_factory=msgspec.Raw)
    strict: bool | None = None


class ResponseToolChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """The one function that the model has to call."""

    name: FunctionName


class ResponseAllowedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function of `ResponseAllowedTools`."""

    type: Literal["function"]
    name: FunctionName


class ResponseAllowedTools(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"
):
    """Some of the tools. The others are not in the prompt."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ResponseAllowedTool], msgspec.Meta(min_length=1)]


AnyResponseChoice = str | ResponseToolChoice | ResponseAllowedTools


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema"]
    schema: _Schema = msgspec.field(default_factory=msgspec.Raw)
    name: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    description: str | None = None
    strict: bool | None = None

    def schema_format(self) -> SchemaFormat | None:
        """Return the schema as chats have it; None if there is none."""
        return None if is_absent(self.schema) else SchemaFormat(self.schema, self.name, self.description, self.strict)


class TextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the text."""

    format: TextFormat | None = None
    verbosity: Ignored = None


class ReasoningOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the reasoning."""

    effort: ReasoningEffort | None = None
    summary: Ignored = None
    generate_summary: Ignored = None
    context: Ignored = None
    mode: Ignored = None


class ResponseRequest(SamplingFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/responses`. A null counts as absent. Nothing is stored."""

    input: Annotated[
        str | list[InputItem], msgspec.Meta(description="A message of the user, or all items of the conversation.")
    ]
    model: (
        Annotated[str, msgspec.Meta(description="Name of a served model; default: the first language model.")] | None
    ) = None
    instructions: Annotated[str, msgspec.Meta(description="The first message, of the system.")] | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**24)] | None = None
    stream: Annotated[bool, msgspec.Meta(description="Respond with server-sent events.")] | None = None
    stream_options: StreamOptions | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: AnyResponseChoice | None = None
    parallel_tool_calls: (
        Annotated[bool, msgspec.Meta(description="False: only the first tool call of a text is returned.")] | None
    ) = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    chat_template_kwargs: TemplateArguments = msgspec.field(default_factory=msgspec.Raw)
    include: list[str] | None = None
    top_logprobs: (
        Annotated[int, msgspec.Meta(ge=0, le=64, description="Number of alternatives to each token of a message.")]
        | None
    ) = None
    metadata: (
        Annotated[dict[str, str], msgspec.Meta(max_length=16, description="Returned with the response.")] | None
    ) = None
    priority: Priority | None = None
    timeout_s: Timeout | None = None
    user: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None
    moderation: Ignored = None
    background: Unsupported = None
    conversation: Unsupported = None
    context_management: Unsupported = None
    max_tool_calls: Unsupported = None
    previous_response_id: Unsupported = None
    prompt: Unsupported = None
    store: Unsupported = None
    truncation: Unsupported = None

    def check(self) -> None:
        """Raises `InvalidRequest` for a parameter that is not supported."""
        check_supported(self, _NEUTRAL)
        check_stream_options(self.stream_options, is_stream=self.stream is True)
