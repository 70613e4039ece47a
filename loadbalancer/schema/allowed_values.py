"""Finds the allowed values at a place of a struct, for the error about another value. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

_STEP = re.compile(r"\[(?:\d+|\.\.\.)\]|[^.\[]+")


def allowed_values(kind: type[msgspec.Struct], place: str) -> list[Any]:
    """Return the values that a member with a closed list of them may have; empty for any other member.

    `place` is as msgspec names it, such as `messages[0].role`; `[...]` is any member of an object.
    """
    found: list[inspect.Type] = [inspect.type_info(kind)]
    for step in _STEP.findall(place):
        found = [inner for each in _members(found) for inner in _inner(each, step)]
    return [value for each in _members(found) if isinstance(each, inspect.LiteralType) for value in each.values]


def _members(types: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    """The types themselves, without what is around them."""
    for each in types:
        if isinstance(each, inspect.Metadata):
            yield from _members([each.type])
        elif isinstance(each, inspect.UnionType):
            yield from _members(each.types)
        else:
            yield each


def _inner(kind: inspect.Type, step: str) -> list[inspect.Type]:
    if isinstance(kind, inspect.ListType) and step.startswith("["):
        return [kind.item_type]
    if isinstance(kind, inspect.DictType) and step.startswith("["):
        return [kind.value_type]
    if isinstance(kind, inspect.StructType) and kind.tag_field == step:
        return [inspect.LiteralType((kind.tag,))]
    if isinstance(kind, inspect.StructType):
        return [field.type for field in kind.fields if field.encode_name == step]
    return []
