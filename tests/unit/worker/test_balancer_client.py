"""The worker's connection, with a real ROUTER socket of a balancer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from scripts.harness.processes import PATIENCE_S
from tests.support.log_records import records_of
from tests.support.scheduler import IMAGE
from wire.codec import WorkerEnvelope, decode_from_worker
from wire.messages import Bye, Failed, Finished, Heartbeat, Started, ToBalancer
from worker.balancer_client import BalancerClient
from worker.transport import DrainRequested


class Balancer:
    """Receives what the worker sends."""

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.RCVTIMEO, 30_000)
        self._socket.bind(address)

    def until_bye(self) -> list[list[ToBalancer]]:
        """Return the messages, without heartbeats, by the ZeroMQ message that brought them."""
        received: list[list[ToBalancer]] = []
        while not received or not isinstance(received[-1][-1], Bye):
            _, *frames = self._socket.recv_multipart()
            messages = [message for message, _ in decode_from_worker(frames)]
            received.append([message for message in messages if not isinstance(message, Heartbeat)])
            received = [each for each in received if each]
        return received

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/{os.getpid()}.sock"


@pytest.fixture
def balancer(address: str) -> Iterator[Balancer]:
    made = Balancer(address)
    yield made
    made.close()


def result(name: str, size: int) -> WorkerEnvelope:
    return WorkerEnvelope(Finished(name, 1, IMAGE), [bytes(size)])


@pytest.mark.parametrize(
    ("sends", "together"),
    [
        ([["a", "b"], ["c"]], ["a b c"]),
        ([["a"], [], ["b"]], ["a b"]),
        ([["large", "large", "a"]], ["large", "large", "a"]),  # no message is larger than one result may be
        ([["a", "large"], ["b"]], ["a", "large", "b"]),
        ([["a"] * 300], [" ".join(["a"] * 256), " ".join(["a"] * 44)]),
    ],
)
def test_what_waits_leaves_together_up_to_a_size(
    address: str, balancer: Balancer, sends: list[list[str]], together: list[str]
) -> None:
    client = BalancerClient(address, "w", heartbeat_s=60.0, orphan_after_s=60.0)
    for names in sends:
        client.send(*(result(name, 2**20 if name == "large" else 10) for name in names))
    client.start(lambda: Heartbeat(running=0))
    client.close("done")
    received = [
        " ".join(each.task for each in messages if isinstance(each, Finished)) for messages in balancer.until_bye()
    ]
    assert [each for each in received if each] == together


def test_thread_wakes_for_every_message(address: str, balancer: Balancer) -> None:
    client = BalancerClient(address, "w", heartbeat_s=60.0, orphan_after_s=60.0)
    client.start(lambda: Heartbeat(running=0))
    for number in range(500):
        client.send(WorkerEnvelope(Started(str(number), 1)))
    client.close("done")
    names = [getattr(message, "task", "bye") for each in balancer.until_bye() for message in each]
    assert names == [*map(str, range(500)), "bye"]


def test_thread_calls_the_last_function_at_its_time(address: str, balancer: Balancer) -> None:
    client = BalancerClient(address, "w", heartbeat_s=60.0, orphan_after_s=60.0)
    client.start(lambda: Heartbeat(running=0))
    called = threading.Event()

    def in_time() -> None:
        client.send(WorkerEnvelope(Started("in time", 1)))
        called.set()

    start = time.monotonic()
    client.call_at(start + 3600.0, lambda: client.send(WorkerEnvelope(Started("too late", 1))))
    client.call_at(start + 0.05, in_time)
    assert called.wait(PATIENCE_S)
    assert time.monotonic() - start >= 0.05
    client.close("done")
    assert [message for each in balancer.until_bye() for message in each] == [Started("in time", 1), Bye("done")]


def test_task_that_ends_needs_no_word_about_its_start(address: str, balancer: Balancer) -> None:
    client = BalancerClient(address, "w", heartbeat_s=60.0, orphan_after_s=60.0)
    client.send_later(*(WorkerEnvelope(Started(name, 1)) for name in "abc"))
    client.send(result("a", 10), WorkerEnvelope(Failed("b", 1, "error", "broken")))
    client.start(lambda: Heartbeat(running=0))
    client.close("done")
    messages = [message for each in balancer.until_bye() for message in each]
    assert messages == [Started("c", 1), Finished("a", 1, IMAGE), Failed("b", 1, "error", "broken"), Bye("done")]


def test_absent_balancer_is_named_before_the_worker_leaves(address: str, caplog: pytest.LogCaptureFixture) -> None:
    client = BalancerClient(address, "w", heartbeat_s=0.05, orphan_after_s=0.5)
    client.start(lambda: Heartbeat(running=0))
    try:
        [request] = client.receive(PATIENCE_S)
    finally:
        client.close("done")
    assert request == DrainRequested("no balancer for 0.5 s", 0.0)
    warnings = [each for each in records_of(caplog, "worker.balancer_client") if each.levelname == "WARNING"]
    assert [each.getMessage() for each in warnings] == [f"no balancer answers at {address}; trying on"]


def test_messages_that_nobody_takes_do_not_keep_the_worker(address: str) -> None:
    """More of them than a queue of ZeroMQ holds: the thread still notices the silence, and ends."""
    client = BalancerClient(address, "w", heartbeat_s=0.05, orphan_after_s=0.5)
    client.send(*[result("large", 2**20)] * 1500)  # each leaves alone
    client.start(lambda: Heartbeat(running=0))
    [request] = client.receive(PATIENCE_S)
    assert request == DrainRequested("no balancer for 0.5 s", 0.0)
    closing = threading.Thread(target=client.close, args=("done",), daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
