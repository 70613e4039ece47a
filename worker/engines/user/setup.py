"""Chooses decoder and runner for a user's engine, by its interface."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from worker.engine import EngineLimits, UnsupportedModel
from worker.engines.user.async_calls import AsyncRunner, EventLoopThread
from worker.engines.user.images import ImageBounds
from worker.engines.user.inputs import InputDecoder
from worker.engines.user.interface import Interface, inspect_engine
from worker.engines.user.litserve import LitServeHooks
from worker.engines.user.runners import BatchRunner, ItemRunner, IterativeRunner, Runner
from worker.engines.user.streams import Emit, StreamRunner
from worker.engines.user.value_types import UnsupportedType

#: Concurrent calls of an async engine that names no `max_batch_size`.
_ASYNC_CALLS = 32


class Program(NamedTuple):
    """A user's engine, ready to be loaded and run."""

    interface: Interface
    decoder: InputDecoder
    #: Turns the decoded value into the item that the runner takes. May raise any exception.
    prepare: Callable[[Any], Any] | None
    runner: Runner
    load: Callable[[str], None]
    limits: EngineLimits
    thread: EventLoopThread | None


def make_program(engine: Any, bounds: ImageBounds, emit: Emit) -> Program:
    """Raises `UnsupportedModel` if the class is not an engine, or its annotations cannot be used."""
    interface = inspect_engine(engine)
    try:
        decoder = InputDecoder(interface.input_type, bounds)
    except UnsupportedType as error:
        raise UnsupportedModel(f"{type(engine).__name__}: {error}") from None
    except Exception as error:  # pydantic has no schema for the type
        text = str(error).partition("\n")[0]
        raise UnsupportedModel(
            f"{type(engine).__name__}: no input can be of type {interface.input_type}: {text}"
        ) from None
    thread = EventLoopThread() if interface.is_async else None
    hooks = LitServeHooks(engine) if interface.kind == "litserve" else None
    runner = _litserve_runner(hooks, interface, emit, thread) if hooks else _runner(engine, interface, emit, thread)
    return Program(
        interface,
        decoder,
        hooks.decode if hooks else None,
        runner,
        hooks.setup if hooks else functools.partial(_load, engine),
        EngineLimits(_max_batch_size(engine, interface), _batch_wait_ms(engine)),
        thread,
    )


def _runner(engine: Any, interface: Interface, emit: Emit, thread: EventLoopThread | None) -> Runner:
    if interface.kind == "iterative":
        return IterativeRunner(engine, emit)
    predict = engine.predict
    if thread is not None and not interface.is_batched:
        return AsyncRunner(predict, emit, thread, is_stream=interface.is_stream)
    if interface.is_stream:
        generate = predict if thread is None else lambda items: thread.iterate(predict(items))
        return StreamRunner(generate, emit, is_batched=interface.is_batched)
    if thread is not None:
        return BatchRunner(lambda items: thread.run(predict(items)))
    return BatchRunner(predict) if interface.is_batched else ItemRunner(predict)


def _litserve_runner(hooks: LitServeHooks, interface: Interface, emit: Emit, thread: EventLoopThread | None) -> Runner:
    if thread is not None:
        call = hooks.stream_async if interface.is_stream else hooks.predict_async
        return AsyncRunner(call, emit, thread, is_stream=interface.is_stream)
    if interface.is_stream:
        generate = hooks.stream_batch if interface.is_batched else hooks.stream
        return StreamRunner(generate, emit, is_batched=interface.is_batched)
    return BatchRunner(hooks.predict_batch) if interface.is_batched else ItemRunner(hooks.predict)


def _load(engine: Any, device: str) -> None:
    load = getattr(engine, "load", None) or getattr(engine, "setup", None)
    if load is None:
        return
    if inspect.signature(load).parameters:
        load(device)
    else:
        load()


def _max_batch_size(engine: Any, interface: Interface) -> int | None:
    """Return the class's own limit. Raises `UnsupportedModel` for one that is no number."""
    own = getattr(engine, "max_batch_size", None)
    if own is not None and (isinstance(own, bool) or not isinstance(own, int) or own < 1):
        raise UnsupportedModel(f"{type(engine).__name__}.max_batch_size is {own!r}; it must be a number of at least 1")
    if interface.is_async and not interface.is_batched:
        return own if own is not None and interface.kind != "litserve" else _ASYNC_CALLS
    if not interface.is_batched:
        return own or 1
    return own


def _batch_wait_ms(engine: Any) -> float:
    own = getattr(engine, "batch_wait_ms", None)
    if own is None:
        own = 1000 * (getattr(engine, "batch_timeout", None) or 0.0)
    if isinstance(own, bool) or not isinstance(own, int | float) or not 0 <= own < 60_000:
        raise UnsupportedModel(f"{type(engine).__name__}.batch_wait_ms is {own!r}; it must be between 0 and 60000")
    return float(own)
