"""The socket of workers on other machines: one whose link carries nothing delays none of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import zmq
import zmq.asyncio

from configs.sections import Workers
from loadbalancer.transport.curve_listener import CurveListener
from loadbalancer.transport.worker_socket import ReceivedMessage, WorkerSocket
from scripts.harness.processes import PATIENCE_S, free_port
from scripts.harness.tcp_proxy import TcpProxy
from tests.support.scheduler import IMAGE
from tests.support.waiting import until
from wire.codec import BalancerEnvelope, WorkerEnvelope, encode
from wire.curve import AllowedPeer, KeyPair, WorkerKey, new_pair, secure_client
from wire.inputs import ImageInputs
from wire.messages import PROTOCOL, Ack, Assign, Assignment, Finished, Heartbeat, Hello

BULK = bytes(1 << 20)
SERVER = new_pair()
NEAR, FAR = new_pair(), new_pair()


class Link(NamedTuple):
    """The socket, and what it has received: worker and kind of message."""

    router: WorkerSocket
    received: list[tuple[str, str]]
    lost: list[str]
    port: int


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[Link]:
    received: list[tuple[str, str]] = []
    lost: list[str] = []
    port = free_port()
    peers = {NEAR.public: AllowedPeer("near"), FAR.public: AllowedPeer("far")}
    listener = CurveListener(f"tcp://127.0.0.1:{port}", SERVER, lambda: peers)

    def on_messages(messages: Sequence[ReceivedMessage]) -> None:
        received.extend((each.worker, type(each.envelope.message).__name__) for each in messages)
        beats = [each.worker for each in messages if isinstance(each.envelope.message, Heartbeat)]
        router.send({worker: [BalancerEnvelope(Ack(1.0))] for worker in beats})

    address = f"ipc://{folder}/workers.sock"
    router = WorkerSocket(address, listener, on_messages, lambda worker, reason: lost.append(worker), Workers())
    router.open()
    try:
        yield Link(router, received, lost, port)
    finally:
        router.stop_receiving()
        await router.close()


@contextmanager
def peer(own: KeyPair, address: str, name: str) -> Iterator[zmq.asyncio.Socket]:
    """Connect a worker, which says Hello."""
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        secure_client(dealer, WorkerKey(own.public, own.secret, SERVER.public))
        dealer.connect(address)
        hello = Hello(PROTOCOL, name, "m", "sim:0", 7)
        asyncio.ensure_future(dealer.send_multipart(encode([WorkerEnvelope(hello)])))  # noqa: RUF006
        yield dealer


async def heartbeats(dealer: Any, count: int) -> None:
    for _ in range(count):
        await dealer.send_multipart(encode([WorkerEnvelope(Heartbeat(0))]))
        await asyncio.wait_for(dealer.recv_multipart(), PATIENCE_S)


def assign(number: int) -> BalancerEnvelope:
    task = Assignment(f"t{number}", 1, ImageInputs("a seven", 28, 28, 4, 1.0, 1, "euler"), frames=1)
    return BalancerEnvelope(Assign([task]), [BULK])


async def test_link_that_stalls_delays_no_other_worker(tmp_path: Path) -> None:
    async with listening(tmp_path) as link:
        with (
            TcpProxy(link.port) as proxy,
            peer(NEAR, f"tcp://127.0.0.1:{link.port}", "near") as near,
            peer(FAR, proxy.address, "far") as far,
        ):
            await until(lambda: {("near", "Hello"), ("far", "Hello")} <= set(link.received))
            proxy.cut()
            # More than the buffers of the kernel and of the proxy hold, in both directions.
            bulk = [far.send_multipart(encode([WorkerEnvelope(Finished("t", 1, IMAGE), [BULK])])) for _ in range(16)]
            for number in range(32):
                link.router.send({"far": [assign(number)]})
            await heartbeats(near, 200)
            assert link.received.count(("near", "Heartbeat")) == 200
            assert ("far", "Finished") not in link.received, "its messages wait in the proxy"
            assert link.lost == []
            proxy.heal()
            await asyncio.gather(*bulk)
            for _ in range(32):
                await asyncio.wait_for(far.recv_multipart(), PATIENCE_S)
            await until(lambda: link.received.count(("far", "Finished")) == 16)
            sizes = link.router.bytes_of("far")
            assert 16 * len(BULK) < sizes.received < 17 * len(BULK)
            assert 32 * len(BULK) < sizes.sent < 33 * len(BULK)
            assert link.router.bytes_of("near").sent < len(BULK)
            link.router.keep_only(["near"])
            assert link.router.bytes_of("far") == (0, 0)
