"""The ROUTER socket that exchanges messages with the workers.

The event loop watches its file descriptor, and one wake-up receives everything that has arrived. All messages to a
worker from one event leave as one multipart message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

import zmq

from loadbalancer.transport.curve_listener import CannotListen, CurveListener, PeerKind
from wire.codec import (
    MAX_HEADER_BYTES,
    BalancerEnvelope,
    MalformedFrames,
    WorkerEnvelope,
    decode_from_worker,
    encode,
)

log = logging.getLogger(__name__)

#: Called with the worker, its message, and whether the worker is on this machine.
OnMessage = Callable[[str, WorkerEnvelope, bool], None]
#: Called with the worker that cannot be reached, and the reason.
OnWorkerLost = Callable[[str, str], None]
#: Messages taken per wake-up, so that a flood from workers cannot starve HTTP.
_MAX_MESSAGES_PER_WAKE_UP = 256
#: Workers whose malformed messages are named in the log: each can come under as many names as it likes.
_MAX_NAMED = 1000


class WorkerSocket:
    """The ROUTER socket of the workers. All methods are called in the event loop.

    Local workers connect to `address`, workers on other machines to the address of the `listener`.
    """

    def __init__(
        self,
        address: str,
        listener: CurveListener | None,
        on_message: OnMessage,
        on_worker_lost: OnWorkerLost,
        max_result_bytes: int,
    ) -> None:
        """`max_result_bytes`: the largest image or checkpoint, and with it the bounds of a frame and of a message."""
        self._address = address
        self._listener = listener
        self._on_message = on_message
        self._on_worker_lost = on_worker_lost
        self._max_frame_bytes = max(max_result_bytes, MAX_HEADER_BYTES)
        self._max_message_bytes = max_result_bytes + MAX_HEADER_BYTES
        #: Dropped messages by reason.
        self.counters: Counter[str] = Counter()
        self._named: set[str] = set()

    def open(self) -> None:
        """Bind, and start to receive. Raises `CannotListen` if an address cannot be bound."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.SNDHWM, 10_000)
        self._socket.setsockopt(zmq.RCVHWM, 10_000)
        # ZeroMQ bounds each frame, and not the frames of a message that has not arrived completely.
        self._socket.setsockopt(zmq.MAXMSGSIZE, self._max_frame_bytes)
        try:
            self._socket.bind(self._address)
        except zmq.ZMQError as error:
            self._context.destroy()
            raise CannotListen(f"workers cannot connect: {self._address}: {error.strerror}") from None
        if self._listener is not None:  # last: CURVE options apply only to endpoints bound afterwards
            try:
                self._listener.open(self._context, self._socket)
            except CannotListen:
                self._context.destroy()
                raise
        self._loop.add_reader(self._socket.fileno(), self.drain)

    def stop_receiving(self) -> None:
        self._loop.remove_reader(self._socket.fileno())

    async def close(self) -> None:
        """Close once the queued messages are sent."""
        if self._listener is not None:
            self._listener.close()
        self._socket.close()
        await asyncio.to_thread(self._context.term)

    def send(self, worker: str, envelopes: Sequence[BalancerEnvelope]) -> None:
        """Send the messages to the worker as one multipart message."""
        try:
            self._socket.send_multipart([worker.encode(), *encode(envelopes)], zmq.DONTWAIT, copy=False)
        except zmq.ZMQError as error:  # EHOSTUNREACH: disconnected; EAGAIN: it does not read
            self._loop.call_soon(self._on_worker_lost, worker, f"cannot be reached: {error}")
        # The descriptor is edge-triggered: sending may have swallowed the edge of a message that arrived meanwhile.
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self.drain)

    def drain(self) -> None:
        """Receive what has arrived."""
        for _ in range(_MAX_MESSAGES_PER_WAKE_UP):
            if self._socket.closed:
                return
            try:
                identity, *frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            kind = PeerKind.LOCAL if self._listener is None else self._listener.peer_kind(identity)
            if kind is PeerKind.REVOKED:  # its connection stays; its silence makes it a lost worker
                self.counters["revoked"] += 1
                continue
            worker = identity.bytes.decode("utf-8", "replace")
            try:
                buffers = [frame.buffer for frame in frames]
                if sum(buffer.nbytes for buffer in buffers) > self._max_message_bytes:
                    raise MalformedFrames(f"it has more than {self._max_message_bytes} bytes")
                envelopes = decode_from_worker(buffers)
            except MalformedFrames as error:
                self._on_malformed(worker, error)
                continue
            for envelope in envelopes:
                self._on_message(worker, envelope, kind is PeerKind.LOCAL)
        self._loop.call_soon(self.drain)

    def _on_malformed(self, worker: str, error: MalformedFrames) -> None:
        self.counters["malformed"] += 1
        if worker not in self._named and len(self._named) < _MAX_NAMED:
            self._named.add(worker)
            log.warning("dropped a malformed message of %r (further ones are only counted): %s", worker, error)
