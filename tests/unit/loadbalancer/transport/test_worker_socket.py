"""The workers' socket with a real peer: frames and messages over the limit reach nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import zmq
from pydantic import ByteSize

from configs.sections import Workers
from loadbalancer.transport.worker_socket import ReceivedMessage, WorkerSocket
from scripts.harness.processes import PATIENCE_S
from tests.support.scheduler import IMAGE
from tests.support.waiting import until
from wire.codec import MAX_HEADER_BYTES, Frame, WorkerEnvelope, encode
from wire.messages import Capacity, Finished, Preempted, ToBalancer, Tokens
from wire.text import TaskTokens, TokenOutput

LIMIT = 5 << 20


def preempted(*sizes: int) -> list[Frame]:
    frames = [bytes(size) for size in sizes]
    return encode([WorkerEnvelope(Preempted("t", 1, 1, len(frames)), frames)])


@pytest.mark.parametrize(
    ("frames", "events"),
    [
        (preempted(LIMIT), ["Preempted", "Finished"]),
        (preempted(LIMIT, MAX_HEADER_BYTES - 100), ["Preempted", "Finished"]),
        (preempted(LIMIT, MAX_HEADER_BYTES), ["malformed", "Finished"]),
        (preempted(*[1 << 20] * 20), ["malformed", "Finished"]),
        (preempted(LIMIT + 1), ["Finished"]),  # ZeroMQ closes the connection, and the peer connects again
    ],
)
async def test_messages_over_the_limit_are_dropped(tmp_path: Path, frames: list[Frame], events: list[str]) -> None:
    received: list[str] = []

    def on_messages(messages: Sequence[ReceivedMessage]) -> None:
        assert {(each.worker, each.is_local) for each in messages} == {("w", True)}
        received.extend(type(each.envelope.message).__name__ for each in messages)

    address = f"ipc://{tmp_path}/workers.sock"
    router = WorkerSocket(
        address, None, on_messages, lambda worker, reason: None, Workers(max_result_bytes=ByteSize(LIMIT))
    )
    router.open()
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.ROUTING_ID, b"w")
        peer.setsockopt(zmq.RECONNECT_IVL, 10)
        peer.connect(address)
        peer.send_multipart(frames)
        if events != ["Finished"]:
            await until(lambda: received or router.counters["malformed"])
            received += ["malformed"] * router.counters["malformed"]

        def answered() -> bool:
            peer.send_multipart(encode([WorkerEnvelope(Finished("t", 1, IMAGE), [b"image"])]))
            return "Finished" in received

        await until(answered)
    await router.close()
    assert list(dict.fromkeys(received)) == events


async def test_removed_socket_is_bound_again(tmp_path: Path) -> None:
    received: list[tuple[str, str]] = []
    file = tmp_path / "workers.sock"
    address = f"ipc://{file}"
    router = WorkerSocket(
        address,
        None,
        lambda messages: received.extend((each.worker, type(each.envelope.message).__name__) for each in messages),
        lambda worker, reason: None,
        Workers(),
    )
    router.open()
    frames = encode([WorkerEnvelope(Finished("t", 1, IMAGE), [b"image"])])
    with zmq.Context() as context, context.socket(zmq.DEALER) as old, context.socket(zmq.DEALER) as new:
        old.setsockopt(zmq.ROUTING_ID, b"old")
        new.setsockopt(zmq.ROUTING_ID, b"new")
        old.connect(address)
        old.send_multipart(frames)
        await until(lambda: ("old", "Finished") in received)
        file.unlink()
        router.ensure_bound()
        new.connect(address)
        new.send_multipart(frames)
        await until(lambda: ("new", "Finished") in received)
        received.clear()
        old.send_multipart(frames)  # its connection has survived
        await until(lambda: ("old", "Finished") in received)
        bound = file.lstat().st_ino
        router.ensure_bound()
        assert file.lstat().st_ino == bound
        file.unlink()
        tmp_path.rename(tmp_path.with_name("moved"))
        router.ensure_bound()
        tmp_path.with_name("moved").rename(tmp_path)
        router.ensure_bound()
        assert file.is_socket()
    await router.close()


STEP = Tokens([TaskTokens("t", 1, TokenOutput(0, [1], "a "))] * 100)


@pytest.mark.parametrize(
    ("many", "allowed"), [([Capacity(1)] * 100, 512 + 100), ([STEP], 6 + 9 * 6)], ids=["many", "of many tasks"]
)
async def test_flood_of_messages_leaves_turns_to_others(
    tmp_path: Path, many: Sequence[ToBalancer], allowed: int
) -> None:
    sizes: list[int] = []
    turns: list[int] = []

    def on_messages(messages: Sequence[ReceivedMessage]) -> None:
        sizes.append(len(messages))
        turns.append(turn)

    router = WorkerSocket(
        f"ipc://{tmp_path}/workers.sock",
        None,
        on_messages,
        lambda worker, reason: None,
        Workers(),
    )
    router.open()
    turn, count = 0, 3000
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.ROUTING_ID, b"w")
        peer.setsockopt(zmq.SNDHWM, 0)
        peer.connect(f"ipc://{tmp_path}/workers.sock")
        single, large = [encode([WorkerEnvelope(each) for each in messages]) for messages in ([Capacity(1)], many)]
        for number in range(count):
            peer.send_multipart(large if number % 10 == 0 else single)
        async with asyncio.timeout(PATIENCE_S):
            while sum(sizes) < count + (len(many) - 1) * count // 10:
                await asyncio.sleep(0)
                turn += 1
    await router.close()
    assert max(sizes) <= allowed
    assert len(set(turns)) == len(turns), "others had their turn between two of them"


async def test_large_frames_are_not_copied(tmp_path: Path) -> None:
    frames: list[Frame] = []
    router = WorkerSocket(
        f"ipc://{tmp_path}/workers.sock",
        None,
        lambda messages: frames.extend(frame for each in messages for frame in each.envelope.frames),
        lambda worker, reason: None,
        Workers(),
    )
    router.open()
    results = [b"small", bytes(range(256)) * 6000]
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.ROUTING_ID, b"w")
        peer.connect(f"ipc://{tmp_path}/workers.sock")
        peer.send_multipart(encode([WorkerEnvelope(Finished("t", 1, IMAGE), [result]) for result in results]))
        await until(lambda: len(frames) == len(results))
        assert [bytes(frame) for frame in frames] == results
        assert [type(frame) for frame in frames] == [bytes, memoryview]
        frames.clear()
    await router.close()
