"""The grammar of tool calls: their names and arguments, without what stands around them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from wire.text import ToolCallFormat
from worker.engine import TaskError
from worker.engines.text.schemas import schema_rule

#: Of the schemas of all tools together.
_MAX_CHARS = 262_144
#: Keywords that name arguments in other ways than `properties`.
_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "anyOf", "oneOf", "allOf", "$ref"}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
#: The id of a call, as Mistral's models write it.
_CALL_ID = "/[a-zA-Z0-9]{9}/"


def tool_rules(
    tools: Sequence[dict[str, Any]], choice: str, form: ToolCallFormat, symbol: Callable[[str], str]
) -> list[str]:
    """Return the rules `function` and `arguments_N` for the calls that `choice` allows.

    `choice`: `auto`, `required` or the name of a function. `symbol` returns the grammar's symbol of a mark. Raises
    `TaskError` for tools with an error.
    """
    functions = [_function(i, tool) for i, tool in enumerate(tools)]
    allowed = [i for i, (name, _) in enumerate(functions) if choice in ("auto", "required", name)]
    if not allowed:
        raise _invalid(f"tool_choice: there is no tool {choice!r}")
    rules = [f"function: {' | '.join(f'function_{i}' for i in allowed)}"]
    for i in allowed:
        name, arguments = functions[i]
        if form.style == "named":
            call_id = f"{symbol(form.before_id)} {_CALL_ID} " if form.before_id else ""
            middle = f"{symbol(form.before_arguments)} " if form.before_arguments else ""
            rules.append(f"function_{i}: {json.dumps(name)} {call_id}{middle}arguments_{i}")
        else:
            head = json.dumps(f'{{"name": "{name}", "{form.key}": ')
            rules.append(f'function_{i}: {head} arguments_{i} "}}"')
        rules.append(f"arguments_{i}: {arguments}")
    if sum(map(len, rules)) > _MAX_CHARS:
        raise _invalid(f"tools: their JSON schemas have more than {_MAX_CHARS} characters")
    return rules


def _function(number: int, tool: dict[str, Any]) -> tuple[str, str]:
    """Return the name of a function, and the rule of its arguments."""
    function = tool.get("function")
    if not isinstance(function, dict):
        raise _invalid(f"tools: number {number} must have a function, which is an object")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _invalid("tools: a name must consist of 1 to 128 letters, digits, '_', '.' and '-'")
    parameters = _closed(function.get("parameters") or {"type": "object"})
    return name, schema_rule(f"tools: function {name!r}", parameters, lenient=not function.get("strict"))


def _closed(parameters: Any) -> Any:
    """Allow no arguments but the named ones, unless the schema says otherwise: no function takes others."""
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object" or _OPEN & parameters.keys():
        return parameters
    return {"properties": {}, **parameters, "type": "object", "additionalProperties": False}


def _invalid(message: str) -> TaskError:
    return TaskError("invalid", message, 400)
