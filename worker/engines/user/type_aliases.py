"""Type aliases of Python 3.12 (`type Pair = tuple[int, int]`), and the type parameters of generic classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args, get_origin


def is_alias(annotation: Any) -> bool:
    """Return whether it is an alias, with or without arguments."""
    return _is_plain_alias(annotation) or _is_plain_alias(get_origin(annotation))


def resolve_alias(annotation: Any) -> Any:
    """Return the type that an alias stands for. Other annotations are returned as they are.

    Raises the error of an alias that cannot be evaluated, such as `NameError`.
    """
    seen: list[Any] = []
    while is_alias(annotation) and annotation not in seen:
        seen.append(annotation)
        annotation = _value(annotation)
    return annotation


def type_parameters(method: Callable[..., Any]) -> dict[str, Any]:
    """Return the type parameters of the method and of the class that defines it, by name.

    Annotations that are texts may contain them, and they are no globals of the module.
    """
    name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
    classes = inspect.getmro(owner if isinstance(owner, type) else type(owner))
    generics = [next((each for each in classes if name in vars(each)), None), method]
    return {each.__name__: each for generic in generics for each in getattr(generic, "__type_params__", ())}


def _is_plain_alias(annotation: Any) -> bool:
    return type(annotation).__name__ == "TypeAliasType"  # of typing, or of typing_extensions before Python 3.12


def _value(alias: Any) -> Any:
    if _is_plain_alias(alias):
        return alias.__value__
    origin = get_origin(alias)
    value, given = origin.__value__, dict(zip(origin.__type_params__, get_args(alias), strict=False))
    if value in given:
        return given[value]
    used = getattr(value, "__parameters__", ())  # in the order in which the value has them
    return value[tuple(given.get(each, each) for each in used)] if used else value
