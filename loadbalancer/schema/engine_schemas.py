"""JSON Schemas that engines report, made fit for the OpenAPI document.

They come from workers and are shown in browsers: references to anything outside the schema are removed, so that no page
fetches what an engine names.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

#: Deeper parts are left out.
_MAX_DEPTH = 32
#: Members that refer to other documents, or name this one.
_LINKS = frozenset({"$id", "$schema", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "externalDocs"})
_LOCAL = re.compile(r"#/(?:\$defs|definitions)/(.+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_COMPONENT = "#/components/schemas/{}"


class EngineSchema(NamedTuple):
    """A schema, and those that it refers to, by their names among the document's components."""

    schema: dict[str, Any]
    components: dict[str, dict[str, Any]]


def engine_schema(text: str, prefix: str) -> EngineSchema | None:
    """Return the schema that an engine reports; None if it is empty or no schema.

    `prefix` begins the names of the components.
    """
    try:
        schema = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    definitions = {**_definitions(schema, "definitions"), **_definitions(schema, "$defs")}
    names = {name: component_name(f"{prefix}.{name}") for name in definitions}
    components = {names[name]: _copy(each, names, 0) for name, each in definitions.items()}
    own = {name: value for name, value in schema.items() if name not in ("$defs", "definitions")}
    return EngineSchema(_copy(own, names, 0), components)


def component_name(name: str) -> str:
    """Return the name with `_` for characters that names of components do not have."""
    return _UNSAFE.sub("_", name)


def _definitions(schema: dict[str, Any], member: str) -> dict[str, Any]:
    found = schema.get(member)
    return {name: each for name, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}


def _copy(value: Any, names: dict[str, str], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        return {}
    if isinstance(value, list):
        return [_copy(each, names, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    copied: dict[str, Any] = {}
    for name, each in value.items():
        if name == "$ref":
            target = _target(each, names)
            if target is not None:
                copied[name] = target
        elif name == "mapping" and isinstance(each, dict):  # of a discriminator
            targets = {key: _target(reference, names) for key, reference in each.items()}
            copied[name] = {key: target for key, target in targets.items() if target is not None}
        elif name not in _LINKS:
            copied[name] = _copy(each, names, depth + 1)
    return copied


def _target(reference: Any, names: dict[str, str]) -> str | None:
    found = _LOCAL.fullmatch(reference) if isinstance(reference, str) else None
    name = names.get(found[1]) if found else None
    return None if name is None else _COMPONENT.format(name)
