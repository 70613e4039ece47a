"""Tools, the choice of a tool, and the format of a response, as chats have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from configs.text import clip
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.text.json_bounds import JsonBounds, bounded_object, is_absent

FUNCTION_NAME = r"^[A-Za-z0-9_.-]{1,128}$"
#: Values of `tool_choice` that are no names.
_CHOICES = ("auto", "none", "required")
FunctionName = Annotated[str, msgspec.Meta(pattern=FUNCTION_NAME)]
_Schema = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "object", "description": "A JSON Schema."})]


class FunctionDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: _Schema = msgspec.field(default_factory=msgspec.Raw)
    strict: (
        Annotated[bool, msgspec.Meta(description="Keywords of the schema without support are refused, not ignored.")]
        | None
    ) = None


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool of a chat."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The function of a `ToolChoice`."""

    name: FunctionName


class ToolChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """The one function that the model has to call."""

    function: NamedFunction


class AllowedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function of `AllowedTools`."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tools that the model may call, and whether it has to."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], msgspec.Meta(min_length=1)]


class AllowedToolsChoice(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"
):
    """Some of the tools. The others are not in the prompt."""

    allowed_tools: AllowedTools


AnyToolChoice = str | ToolChoice | AllowedToolsChoice


class SchemaFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The schema of a `ResponseFormat`."""

    schema: _Schema
    name: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    description: str | None = None
    strict: Annotated[bool, msgspec.Meta(description="Accepted for compatibility: schemas are always kept.")] | None = (
        None
    )


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


def json_schema_of(given: ResponseFormat | None, bounds: JsonBounds, place: str = "response_format.json_schema") -> str:
    """Return the schema for the engine: `{}` for any object, empty for any text. Raises `InvalidRequest`.

    `place` is the name of the format's schema in the request.
    """
    if given is None or given.type == "text":
        return ""
    if given.type == "json_object":
        return "{}"
    if given.json_schema is None:
        text = f"Missing required parameter: '{place}'."
        raise InvalidRequest(text, param=place, code="missing_required_parameter")
    schema = given.json_schema.schema
    bounded_object(schema, f"{place}.schema", bounds)
    return bytes(memoryview(schema)).decode()


def tool_definitions(tools: Sequence[Tool], max_tools: int, bounds: JsonBounds) -> list[dict[str, Any]]:
    """Return the tools for a chat template. Raises `InvalidRequest`."""
    if len(tools) > max_tools:
        text = f"Invalid value for 'tools': {len(tools)} tools. At most {max_tools} are allowed."
        raise InvalidRequest(text, param="tools")
    found: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(tools):
        function = tool.function
        if function.name in found:
            text = f"Invalid value for 'tools[{index}].function.name': '{function.name}' is named twice."
            raise InvalidRequest(text, param=f"tools[{index}].function.name")
        if function.name in _CHOICES:
            text = f"Invalid value for 'tools[{index}].function.name': '{function.name}' is reserved."
            raise InvalidRequest(text, param=f"tools[{index}].function.name")
        definition: dict[str, Any] = {"name": function.name, "description": function.description or ""}
        if not is_absent(function.parameters):
            place = f"tools[{index}].function.parameters"
            definition["parameters"] = _parameters(function.parameters, place, bounds)
        if function.strict:
            definition["strict"] = True
        found[function.name] = {"type": "function", "function": definition}
    return list(found.values())


def _parameters(given: msgspec.Raw, place: str, bounds: JsonBounds) -> dict[str, Any]:
    """Return the schema of a function's arguments, which are an object. Raises `InvalidRequest`."""
    schema = bounded_object(given, place, bounds)
    kind = schema.get("type", "object")
    if kind != "object" and kind != ["object"]:
        text = f"Invalid value for '{place}.type': {clip(msgspec.json.encode(kind).decode(), 80)}. Must be \"object\"."
        raise InvalidRequest(text, param=f"{place}.type")
    return schema


def offered_tools(choice: AnyToolChoice | None, definitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the definitions that the model may choose from. Raises `InvalidRequest` for the name of no tool."""
    if not isinstance(choice, AllowedToolsChoice):
        return definitions
    by_name = {each["function"]["name"]: each for each in definitions}
    names = dict.fromkeys(each.function.name for each in choice.allowed_tools.tools)
    for name in names:
        if name not in by_name:
            raise _unknown_function(name)
    return [by_name[name] for name in names]


def chosen_tool(choice: AnyToolChoice | None, tools: Sequence[Tool]) -> str:
    """Return `auto`, `none`, `required` or the name of a tool. Raises `InvalidRequest`."""
    if choice is None:
        return "auto" if tools else "none"
    if isinstance(choice, ToolChoice):
        name = choice.function.name
        if all(tool.function.name != name for tool in tools):
            raise _unknown_function(name)
        return name
    if isinstance(choice, AllowedToolsChoice):
        return choice.allowed_tools.mode
    if choice not in _CHOICES:
        text = "Invalid value for 'tool_choice': Supported: 'auto', 'none', 'required', or a function."
        raise InvalidRequest(text, param="tool_choice")
    if choice != "none" and not tools:
        text = f"Invalid value for 'tool_choice': '{choice}' needs 'tools'."
        if choice == "required":
            raise InvalidRequest(text, param="tool_choice")
        return "none"
    return choice


def _unknown_function(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid value for 'tool_choice': 'tools' has no function named '{name}'.", param="tool_choice"
    )
