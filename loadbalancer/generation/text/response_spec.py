"""Resolves a request of the Responses API into a complete specification. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from configs.settings import Settings
from loadbalancer.access.api_keys import Caller
from loadbalancer.generation.call_validation import call_timeout_s
from loadbalancer.generation.text.chat_spec import chat_prompt, check_has_chat, schema_bounds, template_arguments
from loadbalancer.generation.text.sampling import TokenLimits, resolve_inputs
from loadbalancer.generation.text.text_model import check_chat_chars
from loadbalancer.generation.text.text_spec import TextSpec
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.text.messages import CalledFunction, ChatMessage, ToolCall
from loadbalancer.schema.text.response_answer import ResponseEcho
from loadbalancer.schema.text.response_request import (
    INCLUDED,
    LOGPROBS,
    AnyResponseChoice,
    InputItem,
    ResponseAllowedTools,
    ResponseRequest,
    ResponseToolChoice,
)
from loadbalancer.schema.text.tools import (
    AllowedTool,
    AllowedTools,
    AllowedToolsChoice,
    AnyToolChoice,
    FunctionDefinition,
    NamedFunction,
    ResponseFormat,
    Tool,
    ToolChoice,
    json_schema_of,
)
from wire.inputs import Sampling, TextInputs
from wire.messages import EngineInfo
from wire.text import encode_prompt


def response_spec(
    request: ResponseRequest,
    settings: Settings,
    engine: EngineInfo | None,
    random_seed: int,
    caller: Caller,
    model: str,
) -> TextSpec:
    """Return the specification of `POST /v1/responses`. Raises `InvalidRequest`.

    `engine` is that of the `model`; None until a worker has connected.
    """
    info, limits = engine.text if engine is not None else None, settings.models[model].text.limits
    check_has_chat(info, model)
    _check_included(request.include)
    text_format = _format(request)
    prompt, output = chat_prompt(
        _messages(request),
        _tools(request),
        _choice(request.tool_choice),
        template_arguments(request.reasoning.effort if request.reasoning else None, request.chat_template_kwargs),
        limits,
        info,
        model,
        place="input",
        has_format=text_format is not None and text_format.type != "text",
        parallel_calls=request.parallel_tool_calls,
    )
    inputs = resolve_inputs(
        request,
        settings.models[model].text,
        info,
        random_seed,
        TokenLimits("max_output_tokens", request.max_output_tokens),
        logprobs=_logprobs(request),
        json_schema=json_schema_of(text_format, schema_bounds(limits), "text.format"),
    )
    frame = encode_prompt(prompt)
    check_chat_chars(frame, "input", limits.max_prompt_chars)
    return TextSpec(
        model,
        [inputs],
        [frame],
        call_timeout_s(request.timeout_s, settings.server),
        request.priority or 0,
        caller.owner,
        caller.weight,
        output=output,
        prompt_param="input",
        tokens_per_minute=caller.tokens_per_minute,
    )


def response_echo(request: ResponseRequest, inputs: TextInputs) -> ResponseEcho:
    """Return the parameters that the response repeats."""
    given = request.text.format if request.text is not None else None
    text_format: dict[str, Any] = {"type": "text"} if given is None else _without_nulls(given)
    return ResponseEcho(
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        temperature=_echo_value(request, inputs.sampling, "temperature"),
        top_p=_echo_value(request, inputs.sampling, "top_p"),
        tools=[{"parameters": None, "strict": None} | _without_nulls(tool) for tool in request.tools or []],
        tool_choice=_echo_choice(request.tool_choice),
        text={"format": text_format},
        reasoning={"effort": request.reasoning.effort if request.reasoning else None, "summary": None},
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        top_logprobs=request.top_logprobs or 0,
    )


def _without_nulls(given: msgspec.Struct) -> dict[str, Any]:
    """The members that the request has. A schema stays as it was sent."""
    found = {name: value for name, value in msgspec.structs.asdict(given).items() if value is not None}
    return {name: value for name, value in found.items() if not (isinstance(value, msgspec.Raw) and not bytes(value))}


def _echo_value(request: ResponseRequest, sampling: Sampling, name: str) -> float | None:
    """Return the value as it was sent, else the default; None where the checkpoint has it, and is unknown yet."""
    given: float | None = getattr(request, name)
    default: float | None = None if name in sampling.unset else getattr(sampling, name)
    return default if given is None else given


def _echo_choice(choice: AnyResponseChoice | None) -> Any:
    return msgspec.to_builtins(choice) if isinstance(choice, msgspec.Struct) else choice or "auto"


def _logprobs(request: ResponseRequest) -> int | None:
    if request.top_logprobs or LOGPROBS in (request.include or ()):
        return request.top_logprobs or 0
    return None


def _check_included(include: list[str] | None) -> None:
    for name in include or ():
        if name not in INCLUDED:
            text = f"Unsupported value for 'include': {shorten(name)}. Supported: {', '.join(map(repr, INCLUDED))}."
            raise InvalidRequest(text, param="include", code="unsupported_value")


def _format(request: ResponseRequest) -> ResponseFormat | None:
    given = request.text.format if request.text is not None else None
    if given is None:
        return None
    schema = given.schema_format()
    if given.type == "json_schema" and schema is None:
        raise _missing("text.format.schema")
    return ResponseFormat(given.type, schema)


def _tools(request: ResponseRequest) -> list[Tool]:
    return [
        Tool("function", FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict))
        for tool in request.tools or []
    ]


def _choice(choice: AnyResponseChoice | None) -> AnyToolChoice | None:
    if isinstance(choice, ResponseToolChoice):
        return ToolChoice(NamedFunction(choice.name))
    if isinstance(choice, ResponseAllowedTools):
        allowed = [AllowedTool("function", NamedFunction(tool.name)) for tool in choice.tools]
        return AllowedToolsChoice(AllowedTools(choice.mode, allowed))
    return choice


def _messages(request: ResponseRequest) -> list[ChatMessage]:
    found = [] if request.instructions is None else [ChatMessage("system", request.instructions)]
    if isinstance(request.input, str):
        return [*found, ChatMessage("user", request.input)]
    conversation = _Conversation(found)
    for index, item in enumerate(request.input):
        conversation.add(item, f"input[{index}]")
    if not conversation.messages:
        raise InvalidRequest("Invalid value for 'input': it is empty.", param="input")
    return conversation.messages


class _Conversation:
    """The messages that items make: what the assistant said and called in a row is one."""

    def __init__(self, messages: list[ChatMessage]) -> None:
        self.messages = messages
        self._reasoning = ""

    def add(self, item: InputItem, place: str) -> None:
        match item.type:
            case None | "message":
                self._add_message(item, place)
            case "reasoning":
                parts = item.content if isinstance(item.content, list) else []
                self._reasoning = "\n".join(part.text or "" for part in parts)
            case "function_call":
                name, call_id = _required(item, "name", place), _required(item, "call_id", place)
                self._add_call(ToolCall(CalledFunction(name, item.arguments or "{}"), call_id))
            case "function_call_output":
                call_id = _required(item, "call_id", place)
                if item.output is None:
                    raise _missing(f"{place}.output")
                self.messages.append(ChatMessage("tool", item.output, tool_call_id=call_id))
            case _:
                text = f"Unsupported value for '{place}.type': {shorten(item.type)}. Supported: 'message', "
                text += "'function_call', 'function_call_output' and 'reasoning'; nothing is stored."
                raise InvalidRequest(text, param=f"{place}.type", code="unsupported_value")

    def _add_message(self, item: InputItem, place: str) -> None:
        if item.role is None:
            raise _missing(f"{place}.role")
        reasoning = self._take_reasoning() if item.role == "assistant" else None
        self.messages.append(ChatMessage(item.role, item.content, reasoning_content=reasoning))

    def _add_call(self, call: ToolCall) -> None:
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant":
            self.messages.append(ChatMessage("assistant", None, None, [call], None, self._take_reasoning()))
        else:
            calls = [*(last.tool_calls or []), call]
            self.messages[-1] = msgspec.structs.replace(last, tool_calls=calls)

    def _take_reasoning(self) -> str | None:
        reasoning, self._reasoning = self._reasoning, ""
        return reasoning or None


def _required(item: InputItem, name: str, place: str) -> str:
    value: str | None = getattr(item, name)
    if value is None:
        raise _missing(f"{place}.{name}")
    return value


def _missing(name: str) -> InvalidRequest:
    return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
