"""`POST /v1/models/{model}:predict` by KServe's V1 protocol: the instances of a request, and the predictions for them.

Instances are undecoded slices of the body: they are decoded by the engine that they are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.raw_json import Slice, TooManyItems, array_items, is_utf8
from loadbalancer.schema.struct_parsing import invalid_json, parse_struct
from wire.codec import Frame

Priority = Annotated[int, msgspec.Meta(ge=-100, le=100, description="Higher goes first among requests of one API key.")]
Timeout = Annotated[
    float, msgspec.Meta(gt=0, description="Seconds from arrival after which the request ends with status 504.")
]


class PredictionsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/models/{model}:predict`: a task for each instance. A null counts as absent."""

    instances: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description="Inputs of the engine, in any JSON that it takes.",
            extra_json_schema={"type": "array", "minItems": 1, "items": {}},
        ),
    ]
    stream: Annotated[bool | None, msgspec.Meta(description="Respond with an event for each chunk.")] = None
    priority: Priority | None = None
    timeout_s: Timeout | None = None


class PredictionsAnswer(msgspec.Struct, frozen=True):
    """The response of `:predict`: the output for each instance, in order."""

    predictions: list[Any]


class Instances(NamedTuple):
    """A parsed request: its undecoded items and options."""

    items: Sequence[bytes | Slice]
    stream: bool = False
    priority: int | None = None
    timeout_s: float | None = None


#: The instances of a smaller body are copied.
_SMALL_BYTES = 64 * 2**10
_decoder = msgspec.json.Decoder(PredictionsRequest)


def parse_instances(body: bytes, max_instances: int) -> Instances:
    """Split the body into its instances. Raises `InvalidRequest`."""
    request = parse_struct(_decoder, body)
    if not body.isascii() and not is_utf8(body):
        raise invalid_json("it is not UTF-8")
    try:
        items = array_items(request.instances, max_instances)
    except TooManyItems:
        text = f"Invalid value for 'instances': more than {max_instances}, the maximum (server.max_instances)."
        raise InvalidRequest(text, param="instances") from None
    except msgspec.ValidationError:
        text = "Invalid type for 'instances': Expected a list."
        raise InvalidRequest(text, param="instances", code="invalid_type") from None
    except RecursionError:
        raise invalid_json("it is nested too deeply") from None
    if not items:
        raise InvalidRequest("Invalid value for 'instances': it is empty. Must have at least one.", param="instances")
    if len(body) <= _SMALL_BYTES or _wastes_memory(items, body):
        return Instances(list(map(bytes, items)), bool(request.stream), request.priority, request.timeout_s)
    return Instances(items, bool(request.stream), request.priority, request.timeout_s)


def _wastes_memory(items: list[Slice], body: bytes) -> bool:
    """Return whether slices would keep much of the body in memory that does not count for them.

    Each slice keeps all of it: beside its own bytes, what is around it, and those of instances that have ended.
    """
    return len(items) > 1 or 2 * len(items[0]) < len(body)


def predictions(results: Iterable[Iterable[Frame]]) -> Iterator[Frame]:
    """Yield the parts of the response body: the pieces of the results as they are, and what is between them."""
    between = b'{"predictions":['
    for result in results:
        yield between
        yield from result
        between = b","
    yield b"]}"
