"""Type aliases of Python 3.12 (`type Pair = tuple[int, int]`), and the type parameters of generic classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, get_args, get_origin


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


class MethodTypes:
    """The type parameters of a method and of the class that defines it."""

    def __init__(self, method: Callable[..., Any]) -> None:
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        classes = inspect.getmro(owner if isinstance(owner, type) else type(owner))
        defining = next((each for each in classes if name in vars(each)), None)
        #: By name. Annotations that are texts may contain them, and they are no globals of the module.
        self.parameters: dict[str, Any] = {
            each.__name__: each for generic in (defining, method) for each in getattr(generic, "__type_params__", ())
        }
        self._arguments = _class_arguments(classes).get(defining, {})

    def with_arguments(self, annotation: Any) -> Any:
        """Return the annotation with the types that a subclass gives, as in `class Engine(Base[Item])`."""
        return _substitute(annotation, self._arguments)


def _class_arguments(classes: Iterable[type]) -> dict[Any, dict[Any, Any]]:
    """Return the types that subclasses give for the parameters of each class. Subclasses come first in `classes`."""
    found: dict[Any, dict[Any, Any]] = {}
    for each in classes:
        own = found.get(each, {})
        for base in vars(each).get("__orig_bases__", ()):
            generic, given = get_origin(base), [_substitute(argument, own) for argument in get_args(base)]
            found.setdefault(generic, dict(zip(getattr(generic, "__parameters__", ()), given, strict=False)))
    return found


def _substitute(annotation: Any, given: Mapping[Any, Any]) -> Any:
    """Return the annotation with these types in place of parameters."""
    if isinstance(annotation, TypeVar):
        return given.get(annotation, annotation)
    used = getattr(annotation, "__parameters__", ())  # in the order in which the annotation has them
    if (isinstance(annotation, type) and get_origin(annotation) is None) or not any(each in given for each in used):
        return annotation
    return annotation[tuple(given.get(each, each) for each in used)]


def _is_plain_alias(annotation: Any) -> bool:
    return type(annotation).__name__ == "TypeAliasType"  # of typing, or of typing_extensions before Python 3.12


def _value(alias: Any) -> Any:
    if _is_plain_alias(alias):
        return alias.__value__
    origin = get_origin(alias)
    return _substitute(origin.__value__, dict(zip(origin.__type_params__, get_args(alias), strict=False)))
