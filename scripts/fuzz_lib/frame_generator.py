"""Generates random messages of every type: valid, damaged and oversized ones.

The seed and the given names determine the output. Types and fields are read from `wire.messages`, so that new ones are
included.
"""

from __future__ import annotations

import random
import string
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.inspect import (
    BoolType,
    BytesType,
    FloatType,
    IntType,
    ListType,
    LiteralType,
    NamedTupleType,
    NoneType,
    StrType,
    StructType,
    TupleType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from wire.codec import MAX_HEADER_BYTES

Frames = list[bytes]

_INTS = (0, 1, 1, 2, 3, 7, 64, 100, 255, 2**31 - 1)
_WILD_INTS = (-1, 2**31, 2**53, 2**63 - 1, -(2**63), 2**64 - 1)
_FLOATS = (0.0, 0.01, 0.5, 1.0, 60.0, 1e9)
_WILD_FLOATS = (float("nan"), float("inf"), float("-inf"), -1.0, 1e300)
#: Number of earlier messages that can be repeated.
_MAX_REMEMBERED = 500


class FrameGenerator:
    """Generates messages of one direction."""

    def __init__(self, seed: int, direction: Any, names: Sequence[str]) -> None:
        """`direction` is the union of message types; `names` are used in text fields."""
        self._random = random.Random(seed)
        union = type_info(direction)
        assert isinstance(union, UnionType)
        self.kinds = {kind.cls.__name__: kind for kind in union.types if isinstance(kind, StructType)}
        #: Names for text fields, newest last; names of existing tasks and workers may be added.
        self.names: deque[str] = deque(names, maxlen=64)
        self._earlier: deque[Frames] = deque(maxlen=_MAX_REMEMBERED)

    def message(self, kind: str | None = None, **fields: Any) -> Frames:
        """Return a message of this or a random type with these fields; the others are random."""
        chosen = kind or self._random.choice(list(self.kinds))
        made = self._struct(self.kinds[chosen], wild=0.02) | fields
        return self._remember([msgspec.msgpack.encode([made]), *self._own([made])])

    def random_frames(self) -> Frames:
        """Return random messages: several, damaged or repeated ones, or noise."""
        ways: tuple[tuple[int, Callable[[], Frames]], ...] = (
            (4, self._several),
            (5, lambda: self._damaged(self._several())),
            (3, self._repeated),
            (2, lambda: self._damaged(self._repeated())),
            (1, self._noise),
        )
        [way] = self._random.choices([way for _, way in ways], [weight for weight, _ in ways])
        return way()

    def oversized(self) -> Frames:
        """Return frames beyond the limits of the protocol."""
        return self._random.choice(
            (
                lambda: [b"\xc0" * (MAX_HEADER_BYTES + 1)],
                lambda: [msgspec.msgpack.encode(["x" * MAX_HEADER_BYTES])],
                lambda: [b"\x91" * 200_000],
                lambda: [b"\xdd\xff\xff\xff\xff"],
                lambda: [b"\x90", *[b""] * 3000],
                lambda: [b"\x90", bytes(8 << 20)],
            )
        )()

    # ---- whole messages

    def _several(self) -> Frames:
        kinds = self._random.choices(list(self.kinds.values()), k=self._random.choice((1, 1, 1, 2, 5)))
        made = [self._struct(kind, wild=self._random.choice((0.0, 0.0, 0.1))) for kind in kinds]
        return self._remember([msgspec.msgpack.encode(made), *self._own(made)])

    def _own(self, messages: Sequence[dict[str, Any]]) -> Frames:
        """Return about as many frames as the messages announce, at most 64."""
        tasks = [task for message in messages for task in _list(message.get("tasks")) if isinstance(task, dict)]
        counts = [each.get("frames", _parts(each)) for each in (*messages, *tasks)]
        announced = sum(count for count in counts if isinstance(count, int))
        if self._random.random() < 0.1:
            announced += self._random.choice((-1, 1, 2))
        return [self._random.randbytes(self._random.choice((0, 1, 32, 1000))) for _ in range(min(announced, 64))]

    def _repeated(self) -> Frames:
        return list(self._random.choice(self._earlier)) if self._earlier else self._several()

    def _noise(self) -> Frames:
        sizes = self._random.choices((0, 1, 2, 9, 100, 5000), k=self._random.randrange(1, 5))
        return [self._random.randbytes(size) for size in sizes]

    def _remember(self, frames: Frames) -> Frames:
        self._earlier.append(frames)
        return frames

    def _damaged(self, frames: Frames) -> Frames:
        made, pick = list(frames), self._random
        for _ in range(pick.choice((1, 1, 2, 8))):
            at = pick.randrange(len(made)) if pick.random() < 0.3 else 0
            if pick.random() < 0.2:
                made.insert(at, pick.randbytes(pick.choice((0, 1, 50))))
            elif pick.random() < 0.1 and len(made) > 1:
                del made[at]
            else:
                made[at] = self._damage(made[at])
        return made

    def _damage(self, frame: bytes) -> bytes:
        pick = self._random
        at = pick.randrange(len(frame) + 1)
        to = min(at + pick.choice((1, 1, 2, 9)), len(frame))
        middle = pick.choice((b"", pick.randbytes(1), pick.randbytes(to - at), frame[at:to] * 3))
        return frame[:at] + middle + frame[to:]

    # ---- their fields

    def _struct(self, kind: StructType, wild: float) -> dict[str, Any]:
        made: dict[str, Any] = {} if kind.tag is None else {str(kind.tag_field): kind.tag}
        for each in kind.fields:
            if each.required or self._random.random() < 0.5:
                made[each.encode_name] = self._value(each.type, wild)
        if self._random.random() < wild:
            made.pop(self._random.choice([*made, ""]), None)
            made[self._word()] = self._word()
        return made

    def _value(self, kind: Type, wild: float) -> Any:
        if self._random.random() < wild / 4:
            return self._random.choice((None, "x", [], {}, -1, True, b"x", 0.5))
        match kind:
            case ListType(item_type=item) | VarTupleType(item_type=item):
                most = self._random.choice((0, 1, 2, 5, 200 if self._random.random() < wild else 3))
                return [self._value(item, wild) for _ in range(most)]
            case TupleType(item_types=items):
                return [self._value(item, wild) for item in items]
            case NamedTupleType(fields=fields):
                return [self._value(each.type, wild) for each in fields]
            case UnionType(types=kinds):
                return self._value(self._random.choice(kinds), wild)
            case StructType(array_like=True):
                return [self._value(each.type, wild) for each in kind.fields]
            case StructType():
                return self._struct(kind, wild)
        return self._scalar(kind, wild)

    def _scalar(self, kind: Type, wild: float) -> Any:
        match kind:
            case IntType():
                return self._random.choice(_WILD_INTS if self._random.random() < wild else self._within(kind))
            case FloatType():
                return self._random.choice(_WILD_FLOATS if self._random.random() < wild else _FLOATS)
            case StrType():
                return (
                    self._word() if self._random.random() >= wild else "\N{PILE OF POO}" * self._random.choice((1, 300))
                )
            case BytesType():
                return self._word().encode()
            case BoolType():
                return self._random.random() < 0.5
            case LiteralType(values=values):
                return self._random.choice(values)
            case NoneType():
                return None
        raise TypeError(f"no value for {kind}")  # the protocol has a field of a new type

    def _within(self, kind: IntType) -> tuple[int, ...]:
        low = -(2**63) if kind.ge is None else kind.ge
        high = 2**63 if kind.le is None else kind.le
        return tuple(number for number in _INTS if low <= number <= high)

    def _word(self) -> str:
        if self.names and self._random.random() < 0.7:
            return self._random.choice(self.names)
        return "".join(self._random.choices(string.printable, k=self._random.choice((0, 1, 8, 40))))


def _parts(message: dict[str, Any]) -> int:
    """Return how many parts of a result the message brings; each is a frame."""
    return 1 if message.get("type") == "Chunk" else len(_list(message.get("parts")))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
