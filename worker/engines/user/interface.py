"""Finds out what a user's class offers: its methods, how they are called, and the types of input and output."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import muster.interface
from worker.engine import UnsupportedModel
from worker.engines.user.type_aliases import MethodTypes, resolve_alias

_STREAMS = (Iterator, Iterable, Generator, AsyncIterator, AsyncGenerator)
_ITERATIVE = ("start", "step", "result")


class Interface(NamedTuple):
    """How an engine is called."""

    #: `predict`, `iterative` (start, step, result) or `litserve` (setup and the hooks of LitServe).
    kind: Literal["predict", "iterative", "litserve"]
    #: The method takes a list of items and returns one result for each.
    is_batched: bool
    is_async: bool
    #: The method yields chunks in place of a result.
    is_stream: bool
    input_type: Any
    output_type: Any

    def summary(self) -> str:
        """Return how the engine is called, for people."""
        kinds = {"predict": "predict", "iterative": "start, step and result", "litserve": "LitServe's hooks"}
        traits = ["batches" if self.is_batched else "single items"]
        traits += ["async"] if self.is_async else []
        traits += ["streams"] if self.is_stream else []
        return f"{kinds[self.kind]} ({', '.join(traits)})"


def inspect_engine(engine: Any) -> Interface:
    """Return the interface of an instance. Raises `UnsupportedModel` with what is missing."""
    if is_litserve(engine):
        return _litserve_interface(engine)
    name = type(engine).__name__
    if callable(getattr(engine, "step", None)) or callable(getattr(engine, "start", None)):
        missing = [each for each in _ITERATIVE if not _has(engine, each)]
        if missing:
            raise UnsupportedModel(f"{name} has no method {', '.join(missing)}: an engine with steps needs all three")
        _check_pair(engine, "save", "restore")
        taken, returned = _types(engine.start)[0], _types(engine.result)[1]
        return Interface("iterative", True, False, False, taken, returned)
    predict = getattr(engine, "predict", None)
    if predict is None or not _has(engine, "predict"):
        raise UnsupportedModel(
            f"{name} is not an engine: it has no method predict(items), nor start, step and result, nor setup"
        )
    return _predict_interface(engine, predict)


def is_litserve(engine: Any) -> bool:
    """Return whether the class has LitServe's hooks."""
    return all(callable(getattr(engine, hook, None)) for hook in ("setup", "decode_request", "encode_response"))


def arguments(method: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a bound method. Raises `UnsupportedModel` if it has no signature."""
    try:
        return list(inspect.signature(method).parameters.values())
    except ValueError:
        raise UnsupportedModel(f"the parameters of {method} cannot be read") from None


def _predict_interface(engine: Any, predict: Callable[..., Any]) -> Interface:
    required = [each for each in arguments(predict) if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    if len(required) != 1:
        names = ", ".join(each.name for each in required) or "nothing"
        raise UnsupportedModel(
            f"{type(engine).__name__}.predict takes {names}; it must take one argument: the items, or one item"
        )
    taken, returned = _types(predict)
    is_stream = inspect.isgeneratorfunction(predict) or inspect.isasyncgenfunction(predict)
    is_async = inspect.iscoroutinefunction(predict) or inspect.isasyncgenfunction(predict)
    if get_origin(returned) in _STREAMS and get_args(returned):
        is_stream, returned = True, _resolved(get_args(returned)[0])
    is_batched = _is_batched(engine, required[0].name, taken, returned)
    if is_batched:
        taken, returned = _element(taken), _element(returned)
    returned = _without_errors(returned)
    return Interface("predict", is_batched, is_async, is_stream, taken, returned)


def _is_batched(engine: Any, parameter: str, taken: Any, returned: Any) -> bool:
    """Return whether the method is for a batch: by the class, by the name of the parameter, or by the types.

    It is if it takes a list and returns a list. A list of one and of several dimensions look alike, so that the class
    may say `batched`, a parameter `items` or `item`, or a `max_batch_size` above 1 decide first.
    """
    own = getattr(engine, "batched", None)
    if isinstance(own, bool):
        return own
    size = getattr(engine, "max_batch_size", None)
    if parameter == "item":
        return False
    if taken is inspect.Parameter.empty:
        return size != 1
    if _is_list(taken) and (parameter == "items" or (isinstance(size, int) and size > 1)):
        return True
    return _is_list(taken) and (returned is inspect.Parameter.empty or returned is Any or _is_list(returned))


def _litserve_interface(engine: Any) -> Interface:
    if not callable(getattr(engine, "predict", None)):
        raise UnsupportedModel(f"{type(engine).__name__} has LitServe's hooks but no predict")
    spec = getattr(engine, "spec", None) or getattr(engine, "_spec", None)
    if spec is not None:
        raise UnsupportedModel(
            f"{type(engine).__name__} uses {type(spec).__name__}; specs are not supported, Muster has its own APIs"
        )
    is_stream, is_async = bool(getattr(engine, "stream", False)), bool(getattr(engine, "enable_async", False))
    is_batched = int(getattr(engine, "max_batch_size", 1) or 1) > 1
    if is_batched and is_async:
        raise UnsupportedModel(f"{type(engine).__name__}: enable_async goes without batches (max_batch_size: 1)")
    generates = inspect.isgeneratorfunction(engine.predict) or inspect.isasyncgenfunction(engine.predict)
    if generates and not is_stream:
        raise UnsupportedModel(f"{type(engine).__name__}.predict is a generator, which needs stream=True")
    taken, returned = _types(engine.decode_request)[0], _types(engine.encode_response)[1]
    if getattr(taken, "__name__", "") == "Request":  # LitServe's name for any JSON
        taken = inspect.Parameter.empty
    return Interface("litserve", is_batched, is_async, is_stream, taken, returned)


def _types(method: Callable[..., Any]) -> tuple[Any, Any]:
    """Return the annotations of the first parameter and of the result. Raises `UnsupportedModel`."""
    empty = inspect.Parameter.empty
    if not inspect.isroutine(method):  # an object that is called, such as a compiled model
        return empty, empty
    try:
        own = MethodTypes(method)
        hints = typing.get_type_hints(method, localns=own.parameters, include_extras=True)
        first = next(iter(arguments(method)), None)
        taken = empty if first is None else hints.get(first.name, empty)
        returned = hints.get("return", empty)
        return resolve_alias(own.with_arguments(taken)), resolve_alias(own.with_arguments(returned))
    except Exception as error:  # a name that exists for type checkers only
        name = getattr(method, "__qualname__", str(method))
        raise UnsupportedModel(f"the annotations of {name} cannot be read: {error}") from None


def _resolved(annotation: Any) -> Any:
    """Return what a type alias stands for. Raises `UnsupportedModel`."""
    try:
        return resolve_alias(annotation)
    except Exception as error:  # a name that exists for type checkers only
        raise UnsupportedModel(f"the type alias {annotation} cannot be read: {error}") from None


def _is_list(annotation: Any) -> bool:
    return annotation is list or get_origin(annotation) in (list, Sequence)


def _element(annotation: Any) -> Any:
    """Return the type of the elements of a list; `empty` if it is not known."""
    found = get_args(annotation) if _is_list(annotation) else ()
    return _resolved(found[0]) if found else inspect.Parameter.empty


def _without_errors(annotation: Any) -> Any:
    """Return the type without the exceptions that may stand in place of a result, as in `Answer | Failed`."""
    if get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    values = tuple(
        each for each in get_args(annotation) if not (isinstance(each, type) and issubclass(each, BaseException))
    )
    return typing.Union[values] if values else annotation  # noqa: UP007  # from a tuple


def _has(engine: Any, method: str) -> bool:
    """Return whether the class has the method, other than as a base class of `muster` that documents it."""
    found = getattr(engine, method, None)
    return callable(found) and getattr(found, "__module__", "") != muster.interface.__name__


def _check_pair(engine: Any, first: str, second: str) -> None:
    if _has(engine, first) != _has(engine, second):
        there, missing = (first, second) if _has(engine, first) else (second, first)
        raise UnsupportedModel(f"{type(engine).__name__} has {there} but no {missing}; they go together")
