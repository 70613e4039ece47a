"""What a user's engine tells about itself: its properties, the JSON Schema of its types, and examples."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable
from typing import Any

import msgspec
from pydantic import TypeAdapter

from configs.text import exception_line
from wire.messages import EngineInfo
from worker.engine import UnsupportedModel
from worker.engines.user.images import ImageBounds
from worker.engines.user.setup import Program
from worker.engines.user.value_types import portable_type

log = logging.getLogger(__name__)

#: Longer schemas are not reported.
_MAX_SCHEMA_CHARS = 1 << 16


def describe(engine: Any, program: Program, bounds: ImageBounds) -> EngineInfo:
    """Return the properties that clients and the balancer see."""
    interface = program.interface
    checkpoints = callable(getattr(engine, "save", None)) and interface.kind == "iterative"
    return EngineInfo(
        pipeline=type(engine).__name__[:200],
        batching="user",
        modes=(),
        checkpoints=checkpoints,
        unit="step" if interface.kind == "iterative" else "call",
        streams=interface.is_stream or (interface.kind == "iterative" and callable(getattr(engine, "preview", None))),
        # The chunks of such an engine are previews, and a checkpoint says how many there were.
        repeatable=bool(getattr(engine, "repeatable", checkpoints)),
        input_schema=_schema_text(program.decoder.schema, "input"),
        output_schema=_schema_text(lambda: _output_schema(interface.output_type, bounds), "result"),
    )


def examples(engine: Any) -> list[Any]:
    """Return `examples` (a list, or a method) or `example` (a value, or a method)."""
    for name in ("examples", "example"):
        own = getattr(engine, name, None)
        if own is not None:
            try:
                value = own() if callable(own) else own
                return list(value) if name == "examples" else [value]
            except (Exception, SystemExit) as error:
                raise UnsupportedModel(f"{type(engine).__name__}.{name} failed: {exception_line(error)}") from error
    return []


def _output_schema(annotation: Any, bounds: ImageBounds) -> dict[str, Any]:
    if annotation in (inspect.Signature.empty, Any):
        return {}
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return msgspec.json.schema(annotation)
    return TypeAdapter(portable_type(annotation, bounds)).json_schema(mode="serialization")


def _schema_text(schema: Callable[[], dict[str, Any]], what: str) -> str:
    try:
        text = json.dumps(schema())
    except Exception as error:  # pydantic has no schema for some types that it can validate
        log.info("the type of the %s has no JSON Schema: %s", what, error)
        return ""
    if text == "{}":
        return ""
    if len(text) > _MAX_SCHEMA_CHARS:
        log.warning("the schema of the %s has %d characters; it is not shown", what, len(text))
        return ""
    return text
