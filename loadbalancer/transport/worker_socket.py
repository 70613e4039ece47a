"""The ROUTER socket at which the workers are heard and spoken to. Knows messages, and nothing of tasks.

Its file descriptor is watched by the event loop and drained in bulk: one wake-up takes everything that has arrived,
and everything that is to be said to a worker leaves as one message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

import zmq

from loadbalancer.transport.curve_listener import CannotListen, CurveListener, PeerKind
from wire.codec import ForWorker, FromWorker, MalformedFrames, decode_from_worker, encode

log = logging.getLogger(__name__)

#: What a worker says, and whether it is on this machine.
Heard = Callable[[str, FromWorker, bool], None]
#: The worker cannot be reached, and why.
Lost = Callable[[str, str], None]
#: Messages taken per wake-up, so that a flood from workers cannot starve HTTP.
_BULK = 256
_MAX_MESSAGE_BYTES = 256 * 2**20
#: Workers whose malformed messages are named in the log: each can come under as many names as it likes.
_MOST_BLAMED = 1000


class WorkerSocket:
    """Open from `open` to `close`. All methods are called in the event loop."""

    def __init__(self, address: str, guard: CurveListener | None, heard: Heard, lost: Lost) -> None:
        """Workers meet it at `address`; those of other machines at the guard's."""
        self._address = address
        self._guard = guard
        self._heard = heard
        self._lost = lost
        #: Messages by what was wrong with them.
        self.counters: Counter[str] = Counter()
        self._blamed: set[str] = set()

    def open(self) -> None:
        """Bind, and begin to hear. Raises `zmq.ZMQError` or `CannotListen` if an address cannot be bound."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.SNDHWM, 10_000)
        self._socket.setsockopt(zmq.RCVHWM, 10_000)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        self._socket.bind(self._address)
        if self._guard is not None:  # last, for it changes what is asked of whoever connects to what is bound later
            try:
                self._guard.open(self._context, self._socket)
            except CannotListen:
                self._context.destroy()
                raise
        self._loop.add_reader(self._socket.fileno(), self.drain)

    def mute(self) -> None:
        """Hear nothing more, but for what is drained."""
        self._loop.remove_reader(self._socket.fileno())

    async def close(self) -> None:
        """Be gone when what was said has left."""
        if self._guard is not None:
            self._guard.close()
        self._socket.close()
        await asyncio.to_thread(self._context.term)

    def send(self, worker: str, parcels: Sequence[ForWorker]) -> None:
        """Say all of this to the worker, as one message."""
        try:
            self._socket.send_multipart([worker.encode(), *encode(parcels)], zmq.DONTWAIT, copy=False)
        except zmq.ZMQError as error:  # EHOSTUNREACH: it has gone; EAGAIN: it does not read
            self._loop.call_soon(self._lost, worker, f"cannot be reached: {error}")
        # The descriptor is edge-triggered: sending may have swallowed the edge of a message that arrived meanwhile.
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self.drain)

    def drain(self) -> None:
        """Hear what has arrived."""
        for _ in range(_BULK):
            if self._socket.closed:
                return
            try:
                identity, *frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            origin = PeerKind.LOCAL if self._guard is None else self._guard.origin(identity)
            if origin is PeerKind.REVOKED:  # its connection stands; unheard, it is lost like any silent worker
                self.counters["revoked"] += 1
                continue
            local = origin is PeerKind.LOCAL
            self._receive(identity.bytes.decode("utf-8", "replace"), [frame.buffer for frame in frames], local)
        self._loop.call_soon(self.drain)

    def _receive(self, worker: str, frames: list[memoryview], local: bool) -> None:
        try:
            parcels = decode_from_worker(frames)
        except MalformedFrames as error:
            self.counters["malformed"] += 1
            if worker not in self._blamed and len(self._blamed) < _MOST_BLAMED:
                self._blamed.add(worker)
                log.warning("dropped a malformed message of %r (further ones are only counted): %s", worker, error)
            return
        for parcel in parcels:
            self._heard(worker, parcel, local)
