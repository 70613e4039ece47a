"""Golden frames of the protocol, and decoding of arbitrary bytes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.batch_sizes import BATCH_SIZES, BatchSizes
from wire.codec import (
    MAX_HEADER_BYTES,
    BalancerEnvelope,
    MalformedFrames,
    WorkerEnvelope,
    decode_for_worker,
    decode_from_worker,
    encode,
    encode_bounded,
)
from wire.inputs import ImageInputs, Lora, Part, Sampling, Shape, TextInputs
from wire.messages import (
    PROTOCOL,
    Ack,
    Assign,
    Assignment,
    Bye,
    Cancel,
    Capacity,
    EngineInfo,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    Preempt,
    Preempted,
    Progress,
    Reject,
    ServerStopping,
    Started,
    StartupTimes,
    StepCurve,
    Tokens,
    WorkerCounters,
)
from wire.text import TaskTokens, TextCounters, TokenOutput

INPUTS = ImageInputs("a seven", 64, 64, 20, 3.0, 1, "ddim")

#: Changing one of these strings changes the protocol: raise `PROTOCOL` with it.
FROM_WORKER = [
    (
        Hello(PROTOCOL, "w", "m", "cpu:0", 7),
        "86a474797065a548656c6c6fa870726f746f636f6c09a6776f726b6572a177a56d6f64656ca16da6646576696365a56370753a30a370696407",
    ),
    (Capacity(12), "82a474797065a84361706163697479a5736c6f74730c"),
    (Capacity(12, 4), "83a474797065a84361706163697479a5736c6f74730ca5616865616404"),
    (Started("t", 1), "83a474797065a753746172746564a47461736ba174a7617474656d707401"),
    (
        Progress("t", 1, 5, 20),
        "85a474797065a850726f6772657373a47461736ba174a7617474656d707401a47374657005a5737465707314",
    ),
    (
        Failed("t", 1, "error", "x"),
        "85a474797065a64661696c6564a47461736ba174a7617474656d707401a46b696e64a56572726f72a76d657373616765a178",
    ),
    (Heartbeat(running=0), "82a474797065a9486561727462656174a772756e6e696e6700"),
    (
        Heartbeat(running=0, text=TextCounters(prompt_tokens=7, prefill_batches=BatchSizes().with_step(3))),
        (
            "83a474797065a9486561727462656174a772756e6e696e6700a47465787482ad70726f6d70745f746f6b656e7307"
            "af70726566696c6c5f62617463686573929a0000010000000000000003"
        ),
    ),
    (Bye("told"), "82a474797065a3427965a6726561736f6ea4746f6c64"),
    (
        Hello(PROTOCOL, "w", "m", "cpu:0", 7, engine_info=EngineInfo("P", modes=("text", "image"), checkpoints=True)),
        (
            "87a474797065a548656c6c6fa870726f746f636f6c09a6776f726b6572a177a56d6f64656ca16da6646576696365a56370753a30"
            "a370696407ab656e67696e655f696e666f83a8706970656c696e65a150a56d6f64657392a474657874a5696d616765ab636865636b706f696e74"
            "73c3"
        ),
    ),
    (
        Heartbeat(running=0, curves=[StepCurve(Shape("64x64", 4096), 12, [(1, 0.5)])]),
        (
            "83a474797065a9486561727462656174a772756e6e696e6700a66375727665739183a5736861706592a53634783634cd1000a36361"
            "700ca6706f696e7473919201cb3fe0000000000000"
        ),
    ),
    (
        Hello(PROTOCOL, "w", "m", "cpu:0", 7, start=StartupTimes(spawn_s=0.5, device_s=0.25, standby=True)),
        (
            "87a474797065a548656c6c6fa870726f746f636f6c09a6776f726b6572a177a56d6f64656ca16da6646576696365a56370753a30"
            "a370696407a5737461727483a7737061776e5f73cb3fe0000000000000a86465766963655f73cb3fd0000000000000a77374616e646279c3"
        ),
    ),
    (
        Hello(PROTOCOL, "w", "m", "cpu:0", 7, [("t", 2)]),
        "87a474797065a548656c6c6fa870726f746f636f6c09a6776f726b6572a177a56d6f64656ca16da6646576696365a56370753a30a370696407a772756e6e696e679192a17402",
    ),
    (
        Bye("device", crashed=True),
        "83a474797065a3427965a6726561736f6ea6646576696365a763726173686564c3",
    ),
    (
        Finished("t", 1, (), truncated_tokens=5),
        "85a474797065a846696e6973686564a47461736ba174a7617474656d707401a5706172747390b07472756e63617465645f746f6b656e7305",
    ),
    (
        Tokens([TaskTokens("t", 1, TokenOutput(3, [7, 8], "ab", "stop"))]),
        "82a474797065a6546f6b656e73a57461736b739193a174019803920708a26162a473746f70900000c0",
    ),
]
FOR_WORKER = [
    (Ack(1.0), "82a474797065a341636bab6865617274626561745f73cb3ff0000000000000"),
    (Reject("no"), "82a474797065a652656a656374a6726561736f6ea26e6f"),
    (Cancel(["t"]), "82a474797065a643616e63656ca57461736b7391a174"),
    (ServerStopping(5.0), "82a474797065ae53657276657253746f7070696e67a877697468696e5f73cb4014000000000000"),
    (Preempt(["t"], unstarted=True), "83a474797065a7507265656d7074a57461736b7391a174a9756e73746172746564c3"),
    (Assign([], queued=3), "83a474797065a641737369676ea57461736b7390a671756575656403"),
    (Preempt(["t"]), "82a474797065a7507265656d7074a57461736b7391a174"),
    (
        Assign([Assignment("t", 1, INPUTS)]),
        (
            "82a474797065a641737369676ea57461736b739183a47461736ba174a7617474656d707401a6696e70757473de0008a474797065"
            "a5696d616765a670726f6d7074a76120736576656ea5776964746840a668656967687440a5737465707314ae67756964616e6365"
            "5f7363616c65cb4008000000000000a47365656401a97363686564756c6572a46464696d"
        ),
    ),
    (
        Assign(
            [
                Assignment(
                    "t",
                    1,
                    msgspec.structs.replace(
                        INPUTS, mode="inpaint", strength=0.5, loras=(Lora("ink", 0.5),), reproducible=True
                    ),
                    5,
                    True,
                )
            ]
        ),
        (
            "82a474797065a641737369676ea57461736b739185a47461736ba174a7617474656d707401a6696e70757473de000ca474797065"
            "a5696d616765a670726f6d7074a76120736576656ea5776964746840a668656967687440a5737465707314ae67756964616e6365"
            "5f7363616c65cb4008000000000000a47365656401a97363686564756c6572a46464696da46d6f6465a7696e7061696e74a87374"
            "72656e677468cb3fe0000000000000a56c6f7261739182a46e616d65a3696e6ba57363616c65cb3fe0000000000000ac72657072"
            "6f64756369626c65c3a47374657005a869736f6c61746564c3"
        ),
    ),
    (
        Assign([Assignment("t", 1, TextInputs(Sampling(5), 9), request_id="r", traceparent="00-1")]),
        (
            "82a474797065a641737369676ea57461736b739185a47461736ba174a7617474656d707401a6696e7075747383a474797065a474657874"
            "a873616d706c696e6781a47365656405aa6d61785f746f6b656e7309aa726571756573745f6964a172ab7472616365706172656e74a430302d31"
        ),
    ),
    (
        Assign([Assignment("t", 1, TextInputs(Sampling(5, unset=("top_p",)), 9))]),
        (
            "82a474797065a641737369676ea57461736b739183a47461736ba174a7617474656d707401a6696e7075747383a474797065a474"
            "657874a873616d706c696e6782a47365656405a5756e73657491a5746f705f70aa6d61785f746f6b656e7309"
        ),
    ),
    (
        Assign([Assignment("t", 1, TextInputs(Sampling(5, 0.5), 9, stop=("x",)))]),
        (
            "82a474797065a641737369676ea57461736b739183a47461736ba174a7617474656d707401a6696e7075747384a474797065"
            "a474657874a873616d706c696e6782a47365656405ab74656d7065726174757265cb3fe0000000000000aa6d61785f746f6b656e7309a473746f7091a178"
        ),
    ),
]


@pytest.mark.parametrize(("message", "golden"), FROM_WORKER, ids=lambda v: type(v).__name__)
def test_golden_frames_from_a_worker(message: object, golden: str) -> None:
    frames = encode([WorkerEnvelope(message)])  # type: ignore[arg-type]
    assert bytes(frames[0]).hex() == "91" + golden
    assert [envelope.message for envelope in decode_from_worker(frames)] == [message]


@pytest.mark.parametrize(("message", "golden"), FOR_WORKER, ids=lambda v: type(v).__name__)
def test_golden_frames_for_a_worker(message: object, golden: str) -> None:
    frames = encode([BalancerEnvelope(message)])  # type: ignore[arg-type]
    assert bytes(frames[0]).hex() == "91" + golden
    assert [envelope.message for envelope in decode_for_worker(frames)] == [message]


def test_frames_follow_their_messages_in_order() -> None:
    envelopes = [
        WorkerEnvelope(Finished("a", 1, (Part("image/png"),)), [b"png of a"]),
        WorkerEnvelope(Heartbeat(running=1, counters=WorkerCounters(steps=3))),
        WorkerEnvelope(Preempted("b", 2, step=4, frames=2), [b"latents", b"state"]),
        WorkerEnvelope(Progress("c", 1, 2, 3, preview=True, frames=2), [b"preview", b"state"]),
    ]
    frames = encode(envelopes)
    assert len(frames) == 6
    assert [(m, list(f)) for m, f in decode_from_worker(frames)] == [(m, list(f)) for m, f in envelopes]
    two = Assign(
        [Assignment("a", 1, INPUTS, frames=1), Assignment("b", 1, INPUTS), Assignment("c", 1, INPUTS, frames=2)]
    )
    [(message, own)] = decode_for_worker(encode([BalancerEnvelope(two, [b"1", b"2", b"3"])]))
    assert (message, list(own)) == (two, [b"1", b"2", b"3"])


def test_frame_count_mismatch_is_rejected() -> None:
    with pytest.raises(ValueError, match="announces 1 frames, brings 0"):
        encode([WorkerEnvelope(Finished("a", 1, (Part("image/png"),)))])


def header(*messages: object) -> bytes:
    return msgspec.msgpack.encode(messages)


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([], "no header"),
        ([b""], "truncated"),
        ([b"\xc1"], "malformed"),
        ([b"\x80\x04\x95pickle"], "Expected `array`"),
        ([header({"type": "Nonsense"})], "Nonsense"),
        ([header({"type": "Capacity"})], "slots"),
        ([header({"type": "Capacity", "slots": "many"})], "Expected `int`"),
        ([header({"type": "Finished", "task": "t", "attempt": 1, "parts": [{}]})], "announce 1 frames, 0 came"),
        ([header({"type": "Capacity", "slots": 1}), b"stowaway"], "announce 0 frames, 1 came"),
        ([header({"type": "Preempted", "task": "t", "attempt": 1, "frames": -1})], ">= 0"),
        ([header(*({"type": "Preempted", "task": "t", "attempt": 1, "frames": n} for n in (2, -1))), b"x"], ">= 0"),
        ([header({"type": "Finished", "task": "t", "attempt": 1})], "missing required field `parts`"),
        (
            [header({"type": "Finished", "task": "t", "attempt": 1, "parts": [{}] * 257}), *[b"x"] * 257],
            "length <= 256",
        ),
        ([header({"type": "Finished", "task": "t", "attempt": 1, "parts": [{"shape": [1] * 33}]}), b"x"], "<= 32"),
        ([header({"type": "Chunk", "task": "t", "attempt": 1, "index": 0, "part": {}})], "announce 1 frames, 0 came"),
        ([header({"type": "Capacity", "slots": -1})], ">= 0"),
        ([header({"type": "Capacity", "slots": 2**63})], "<= 2147483647"),
        ([header({"type": "Started", "task": "t" * 201, "attempt": 1})], "length <= 200"),
        ([header({"type": "Progress", "task": "t", "attempt": 1, "step": 2**40, "steps": 1})], "<= 2147483647"),
        ([header({"type": "Heartbeat", "running": 0, "step_s": float("nan")})], ">= 0"),
        ([header({"type": "Heartbeat", "running": 0, "step_s": float("inf")})], "<= 1000000000"),
        ([header({"type": "Heartbeat", "running": 0, "counters": {"steps": -1}})], ">= 0"),
        ([header({"type": "Heartbeat", "running": 0, "text": {"prefill_batches": [[1, 2], 3]}})], "length >= 10"),
        (
            [header({"type": "Heartbeat", "running": 0, "curves": [{"shape": ["8x8", 0], "cap": 1}]})],
            ">= 1",
        ),
        *(
            (
                [
                    header(
                        {
                            "type": "Heartbeat",
                            "running": 0,
                            "curves": [{"shape": ["8x8", 64], "cap": 1, "points": p}],
                        }
                    )
                ],
                "must rise",
            )
            for p in ([[1, 0.1], [1, 0.2]], [[4, 0.1], [1, 0.2]])
        ),
        ([header({"type": "Hello", "protocol": 2, "worker": "w", "model": "m", "device": "d", "pid": -1})], ">= 0"),
        ([b"x" * (MAX_HEADER_BYTES + 1)], "past the limit"),
        ([b"\x91" * 100_000], "nested too deeply|Expected|too deep|recursion"),
    ],
)
def test_malformed_message_is_rejected(frames: list[bytes], why: str) -> None:
    with pytest.raises(MalformedFrames, match=f"(?i){why}"):
        decode_from_worker(frames)


def test_message_that_is_too_large_leaves_as_several() -> None:
    """The receiver drops a larger header, and the tasks in it would never start."""
    inputs = ImageInputs("x" * (MAX_HEADER_BYTES // 10), 64, 64, 20, 3.0, 1, "ddim")
    tasks = [Assignment(f"t-{n}", 1, inputs, frames=n % 3) for n in range(25)]
    frames = [f"{task.task} {n}".encode() for task in tasks for n in range(task.frames)]
    sent = [BalancerEnvelope(Ack(1.0)), BalancerEnvelope(Assign(tasks, 7), frames), BalancerEnvelope(Cancel(["t-0"]))]
    messages = [decode_for_worker(each) for each in encode_bounded(sent)]
    assert len(messages) > 2
    received = [each for message in messages for each in message]
    assert [received[0].message, received[-1].message] == [Ack(1.0), Cancel(["t-0"])]
    assigned = [(each.message, each.frames) for each in received if isinstance(each.message, Assign)]
    assert [task for message, _ in assigned for task in message.tasks] == tasks
    assert [bytes(frame) for _, own in assigned for frame in own] == frames
    assert {message.queued for message, _ in assigned} == {7}


def test_tokens_that_are_too_many_leave_as_several() -> None:
    output = TokenOutput(0, list(range(2**16, 2**16 + 4096)), "x" * 60_000)
    tasks = [TaskTokens(f"t-{n}", 1, output) for n in range(100)]
    messages = [decode_from_worker(each) for each in encode_bounded([WorkerEnvelope(Tokens(tasks))])]
    assert len(messages) > 1
    received = [each.message for message in messages for each in message]
    assert [task for each in received if isinstance(each, Tokens) for task in each.tasks] == tasks


def test_message_within_its_bounds_leaves_as_one() -> None:
    sent = [WorkerEnvelope(Capacity(3)), WorkerEnvelope(Failed("t", 1, "error", "text"))]
    assert list(encode_bounded(sent)) == [encode(sent)]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_arbitrary_bytes_decode_or_are_rejected(frames: list[bytes]) -> None:
    for decode in (decode_from_worker, decode_for_worker):
        try:
            decode(frames)
        except MalformedFrames:
            continue


@given(st.data())
def test_damaged_message_decodes_or_is_rejected(data: st.DataObject) -> None:
    frames = [
        bytes(frame)
        for frame in encode([WorkerEnvelope(Failed("task", 1, "error", "text")), WorkerEnvelope(Capacity(3))])
    ]
    position = data.draw(st.integers(0, len(frames[0]) - 1))
    damaged = frames[0][:position] + data.draw(st.binary(max_size=3)) + frames[0][position + 1 :]
    try:
        assert len(decode_from_worker([damaged])) <= 16
    except MalformedFrames:
        return


@pytest.mark.parametrize(("rows", "bucket"), [(1, 0), (2, 1), (3, 2), (4, 2), (256, 8), (257, 9), (4096, 9)])
def test_batch_is_counted_by_its_size(rows: int, bucket: int) -> None:
    sizes = BatchSizes().with_step(rows).with_step(rows)
    assert [place for place, steps in enumerate(sizes.steps) if steps] == [bucket]
    assert (sizes.steps[bucket], sizes.rows, len(sizes.steps)) == (2, 2 * rows, len(BATCH_SIZES) + 1)


def test_step_without_rows_is_no_batch() -> None:
    assert BatchSizes().with_step(0) == BatchSizes()
