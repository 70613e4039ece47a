"""JSON Schemas from clients: bounded, and with the white space that results may have."""

from __future__ import annotations

import json
from typing import Any

from llguidance import LLMatcher

from worker.engine import TaskError

#: Compilation takes quadratic time in the properties of one object: about 0.1 s for so many.
_MAX_PROPERTIES = 512
#: Between two parts of a JSON text: as usual writers indent it. With more freedom, small models fill it with space.
_WHITE_SPACE = r"( |\n[ \t]{0,64})?"
_KNOWN_DRAFT = "json-schema.org/draft"


def schema_rule(place: str, schema: Any, *, lenient: bool = False) -> str:
    """Return the rule of a grammar for JSON texts that match the schema; `{}` is any object.

    `place`: where the client gave it. `lenient`: keywords without support are ignored, and `oneOf` means `anyOf`.
    Raises `TaskError` for a schema with an error.
    """
    if isinstance(schema, bool) or not isinstance(schema, dict):
        raise _invalid(place, "must be an object")
    if _count_properties(schema) > _MAX_PROPERTIES:
        raise _invalid(place, f"has an object with more than {_MAX_PROPERTIES} properties")
    options = {"whitespace_pattern": _WHITE_SPACE, "lenient": lenient, "coerce_one_of": lenient}
    known = {key: value for key, value in schema.items() if key != "$schema" or _KNOWN_DRAFT in str(value)}
    content = json.dumps({**(known or {"type": "object"}), "x-guidance": options})
    try:
        problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(content))
    except ValueError as error:
        problem = str(error)
    if problem:
        raise _invalid(place, _sentence(problem))
    return f"%json {content}"


def _count_properties(schema: Any) -> int:
    largest, waiting = 0, [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            largest = max(largest, len(value))
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return largest


def _sentence(problem: str) -> str:
    text = problem.replace("Unimplemented keys:", "these keywords are not supported:")
    text = text.partition(" Enable 'coerce_one_of'")[0].replace("oneOf constraints", "oneOf with overlapping choices")
    return " ".join(text.split())[:500]


def _invalid(place: str, problem: str) -> TaskError:
    return TaskError("invalid", f"{place}: the JSON schema cannot be used: {problem}", 400)
