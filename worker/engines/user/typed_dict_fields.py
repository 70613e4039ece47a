"""Qualifiers of the fields of a TypedDict."""

from __future__ import annotations

from typing import Any, get_args, get_origin

_QUALIFIERS = ("Required", "NotRequired", "ReadOnly")


def _qualifier(hint: Any) -> str:
    """Return the outermost qualifier of a field of a TypedDict; empty if there is none."""
    name = str(getattr(get_origin(hint), "_name", ""))
    return name if name in _QUALIFIERS else ""


def without_qualifiers(hint: Any) -> Any:
    """Return the type in `Required[...]`, `NotRequired[...]` or `ReadOnly[...]`."""
    while _qualifier(hint):
        hint = get_args(hint)[0]
    return hint


def is_optional(hint: Any, by_class: bool) -> bool:
    """Return whether a TypedDict need not have the field, which is `by_class` if its annotation does not say."""
    while qualifier := _qualifier(hint):
        if qualifier != "ReadOnly":
            return qualifier == "NotRequired"
        hint = get_args(hint)[0]
    return by_class
