"""Headers of the right shape with any content decode or are rejected, and the scheduler takes the messages."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.scheduling.events import MessageReceived, TasksSubmitted
from tests.support.scheduler import PNG, connect, new_scheduler, task
from wire.codec import MalformedFrames, WorkerEnvelope, decode_for_worker, decode_from_worker
from wire.messages import ToBalancer, ToWorker

#: Values that fit some field and values that fit none, numbers at their limits among them.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([0, 1, 2**31 - 1, 2**31])
    | st.floats()
    | st.sampled_from(["t", "w", "m", "error", "image"])
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FRAMES = st.lists(st.sampled_from([b"", PNG, b"<html>", b"state"]), max_size=4)


def headers(kinds: Any) -> st.SearchStrategy[bytes]:
    """Return headers of messages with the fields of these kinds; a field may be missing or have any value."""

    def message(kind: Any) -> st.SearchStrategy[dict[str, Any]]:
        fields = {field.encode_name: VALUES for field in msgspec.structs.fields(kind)}
        likely = {"task": "t", "attempt": 1, "worker": "w", "model": "m", "slots": 4}
        usual = {name: st.just(likely[name]) | value if name in likely else value for name, value in fields.items()}
        return st.fixed_dictionaries({"type": st.just(kind.__name__)}, optional=usual)

    return st.lists(st.one_of(*map(message, get_args(kinds))), max_size=4).map(msgspec.msgpack.encode)


@pytest.mark.parametrize(("decode", "kinds"), [(decode_from_worker, ToBalancer), (decode_for_worker, ToWorker)])
def test_well_shaped_headers_decode_or_are_rejected(decode: Any, kinds: Any) -> None:
    @given(headers(kinds), FRAMES)
    def check(header: bytes, frames: list[bytes]) -> None:
        try:
            envelopes = decode([header, *frames])
        except MalformedFrames:
            return
        assert [frame for envelope in envelopes for frame in envelope.frames] == frames

    check()


@given(st.lists(st.tuples(headers(ToBalancer), FRAMES), max_size=6))
def test_scheduler_takes_every_decoded_message(messages: list[tuple[bytes, list[bytes]]]) -> None:
    core = new_scheduler()
    connect(core, "w", 4)
    core.handle(TasksSubmitted([task("t")]), 0.0)
    for header, frames in messages:
        try:
            envelopes: list[WorkerEnvelope] = decode_from_worker([header, *frames])
        except MalformedFrames:
            continue
        for envelope in envelopes:
            core.handle(MessageReceived("w", envelope), 1.0)
    assert len(core.tasks) + core.counters["done"] + core.counters["failed"] == 1
