"""The ROUTER sockets that exchange messages with the workers.

The event loop watches their file descriptors, and one wake-up receives everything that has arrived. Messages
that are sent to a worker at once leave as one multipart message, if that is not too large.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
import zmq

from configs.devices import on_machine
from configs.sections import Workers
from loadbalancer.transport.agent_messages import AgentMessages
from loadbalancer.transport.curve_listener import CannotListen, CurveListener
from loadbalancer.transport.local_address import LocalAddress
from loadbalancer.transport.weight_files import WeightFiles
from loadbalancer.transport.worker_routes import NameRefused, RemoteRoute, WorkerRoutes
from wire.agents import MalformedAgentMessage
from wire.codec import (
    MAX_HEADER_BYTES,
    BalancerEnvelope,
    Frame,
    MalformedFrames,
    WorkerEnvelope,
    decode_from_worker,
    encode,
    encode_bounded,
)
from wire.messages import Bye, Hello, Reject, ToBalancer, Tokens
from wire.snapshot import LinkBytes

log = logging.getLogger(__name__)


class ReceivedMessage(NamedTuple):
    """A message of a worker. `is_local`: the worker is on this machine."""

    worker: str
    envelope: WorkerEnvelope
    is_local: bool


#: Called with what one wake-up has received, in order.
OnMessages = Callable[[Sequence[ReceivedMessage]], None]
#: Called with the worker that cannot be reached, and the reason.
OnWorkerLost = Callable[[str, str], None]
#: ZeroMQ messages taken per wake-up, and the number of messages in them after which no other is taken. So a flood from
#: workers cannot starve HTTP.
_MAX_RECEIVED_PER_WAKE_UP = 256
_MAX_MESSAGES_PER_WAKE_UP = 512
#: Frames from this size on are passed on without a copy. Below, the copy costs less than what avoids it.
_ZERO_COPY_BYTES = 1 << 14
_MORE = zmq.DONTWAIT | zmq.SNDMORE
#: Workers whose malformed messages are named in the log: each can come under as many names as it likes.
_MAX_NAMED = 1000
#: Least seconds between two requests for a Hello over one connection.
_HELLO_REQUEST_S = 0.5


class WorkerSocket:
    """The ROUTER sockets of the workers. All methods are called in the event loop.

    Local workers connect to `address`, workers on other machines to the address of the `listener`. Those have a socket
    of their own: the identities that ZeroMQ routes by are chosen by local workers, but given to the others, so that
    nobody can receive the messages of another worker.
    """

    def __init__(
        self,
        address: str,
        listener: CurveListener | None,
        on_messages: OnMessages,
        on_worker_lost: OnWorkerLost,
        settings: Workers,
        files: WeightFiles | None = None,
    ) -> None:
        """`files` are those of models that agents may fetch."""
        self._address = LocalAddress(address)
        self._listener = listener
        self._on_messages = on_messages
        self._on_worker_lost = on_worker_lost
        max_result_bytes = int(settings.max_result_bytes)
        self._max_frame_bytes = max(max_result_bytes, MAX_HEADER_BYTES)
        self._max_message_bytes = max_result_bytes + MAX_HEADER_BYTES
        self._routes = WorkerRoutes(settings.max_per_key)
        self.agents = AgentMessages(files or WeightFiles({}), settings.heartbeat_s, on_worker_lost)
        #: Connections that were asked for a Hello, and when.
        self._hello_requested: dict[bytes, float] = {}
        #: Dropped messages by reason.
        self.counters: Counter[str] = Counter()
        self._named: set[str] = set()
        #: Bytes of each worker's messages.
        self._received_bytes: Counter[str] = Counter()
        self._sent_bytes: Counter[str] = Counter()

    def open(self) -> None:
        """Bind, and start to receive. Raises `CannotListen` if an address cannot be bound."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._local = self._new_socket()
        self._local.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._remote: zmq.Socket[bytes] | None = None
        try:
            self._address.bind(self._local)
            if self._listener is not None:
                self._remote = self._new_socket()
                self._listener.open(self._context, self._remote)
                self.agents.open(self._remote, partial(self.send, {}))
        except CannotListen:
            self._context.destroy()
            raise
        self._sockets = [self._local] if self._remote is None else [self._local, self._remote]
        for socket in self._sockets:
            self._loop.add_reader(socket.fileno(), self._drain, socket)

    def ensure_bound(self) -> None:
        """Bind the local address again if its file was removed: new workers find it by the file."""
        self._address.ensure_bound(self._local)

    def _new_socket(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt(zmq.SNDHWM, 10_000)
        socket.setsockopt(zmq.RCVHWM, 10_000)
        # ZeroMQ bounds each frame, and not the frames of a message that has not arrived completely.
        socket.setsockopt(zmq.MAXMSGSIZE, self._max_frame_bytes)
        return socket

    def stop_receiving(self) -> None:
        for socket in self._sockets:
            self._loop.remove_reader(socket.fileno())

    async def close(self) -> None:
        """Close once the queued messages are sent."""
        if self._listener is not None:
            await self._listener.close()
        for socket in self._sockets:
            socket.close()
        self.agents.close()
        await asyncio.to_thread(self._context.term)

    def keep_only(self, workers: Collection[str]) -> None:
        """Forget the names of all other workers."""
        self._routes.keep_only(workers)
        for counter in (self._received_bytes, self._sent_bytes):
            for worker in counter.keys() - set(workers):
                del counter[worker]
        if self._listener is not None:
            self.agents.keep_only(self._listener.agent_names())

    def send(self, outbox: Mapping[str, Sequence[BalancerEnvelope]]) -> None:
        """Send each worker its messages as one multipart message, or as several where they are large.

        Then receives what arrived meanwhile: descriptors are edge-triggered, and sending swallows edges.
        """
        for worker, envelopes in outbox.items():
            route, socket, identity = self._routes.routes.get(worker), self._local, worker.encode()
            if route is not None:
                assert self._remote is not None
                socket, identity = self._remote, route.identity
            try:
                for *frames, last in encode_bounded(envelopes):
                    socket.send(identity, _MORE)  # an error comes here, and never later
                    for frame in frames:
                        socket.send(frame, _MORE, copy=len(frame) < _ZERO_COPY_BYTES)
                    socket.send(last, zmq.DONTWAIT, copy=len(last) < _ZERO_COPY_BYTES)
                    self._sent_bytes[worker] += sum(map(len, frames)) + len(last)
            except zmq.ZMQError as error:  # EHOSTUNREACH: disconnected; EAGAIN: it does not read
                self._loop.call_soon(self._on_worker_lost, worker, f"cannot be reached: {error}")
        for socket in self._sockets:
            if int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                self._loop.call_soon(self._drain, socket)

    def bytes_of(self, worker: str) -> LinkBytes:
        """Return the bytes of the worker's messages since it connected."""
        return LinkBytes(self._received_bytes[worker], self._sent_bytes[worker])

    def drain(self) -> None:
        """Receive what has arrived."""
        for socket in self._sockets:
            self._drain(socket)

    def _drain(self, socket: zmq.Socket[bytes]) -> None:
        """Receive what has arrived on this socket; what is beyond a bound follows when others have had their turn."""
        received: list[ReceivedMessage] = []
        cost, is_remote = 0, socket is self._remote
        for _ in range(_MAX_RECEIVED_PER_WAKE_UP):
            if socket.closed:
                break
            try:
                identity: zmq.Frame | bytes = socket.recv(zmq.DONTWAIT, copy=not is_remote)
            except zmq.Again:
                break
            frames: list[Frame] = []
            has_more = True
            while has_more:  # a ROUTER socket has all frames once it has the first
                frame = socket.recv(zmq.DONTWAIT, copy=False)
                frames.append(frame.buffer if len(frame) >= _ZERO_COPY_BYTES else frame.bytes)
                has_more = frame.more
            before = len(received)
            if isinstance(identity, zmq.Frame):
                received += self._from_remote(identity, frames)
            else:
                self._take_local(identity, frames, received)
            for each in received[before:]:
                message = each.envelope.message
                # The tokens of a step are of many tasks.
                cost += len(message.tasks) if isinstance(message, Tokens) else 1
            if cost >= _MAX_MESSAGES_PER_WAKE_UP:
                self._loop.call_soon(self._drain, socket)
                break
        else:
            self._loop.call_soon(self._drain, socket)
        if received:
            self._on_messages(received)

    def _take_local(self, identity: bytes, frames: Sequence[Frame], received: list[ReceivedMessage]) -> None:
        """Append the messages that a local worker has sent."""
        worker, routes = identity.decode("utf-8", "replace"), self._routes.routes
        envelopes = self._decode(worker, frames)
        if envelopes:
            self._received_bytes[worker] += sum(map(len, frames))
        for envelope in envelopes:
            if isinstance(envelope.message, Hello):
                self._routes.accept_local(worker)
            elif routes.get(worker) is not None:
                self.counters["unknown_worker"] += 1
                continue
            received.append(ReceivedMessage(worker, envelope, True))

    def _from_remote(self, identity: zmq.Frame, frames: Sequence[Frame]) -> Iterator[ReceivedMessage]:
        assert self._listener is not None
        peer = self._listener.peer(identity)
        if peer is None:  # revoked: its connection stays; its silence makes it a lost worker
            self.counters["revoked"] += 1
            return
        key, route = peer.name, RemoteRoute(identity.bytes, peer.name)
        if route.identity[:1] != b"\0":  # chosen by the peer, and not unique
            self._warn(key, "dropped a message of a peer with the key %r that chose its own identity")
            self.counters["malformed"] += 1
            return
        if peer.is_agent:
            try:
                self.agents.receive(route, frames)
            except MalformedAgentMessage as error:
                self.counters["malformed"] += 1
                text = "dropped a malformed message of the agent %r (further ones are only counted): %s"
                self._warn(key, text, error)
            return
        size = sum(map(len, frames))
        for envelope in self._decode(key, frames):
            message = envelope.message
            if isinstance(message, Hello):
                try:
                    worker = self._routes.accept_remote(route, message.worker)
                except NameRefused as error:
                    self._refuse(route, str(error))
                    continue
                device = on_machine(key, message.device) if peer.of_agent else message.device
                hello = msgspec.structs.replace(message, worker=worker, device=device)
                envelope = WorkerEnvelope(hello, envelope.frames)
            name = self._routes.remote_name(route)
            if name is None:
                self._request_hello(route, message)
            else:
                self._received_bytes[name] += size
                size = 0
                yield ReceivedMessage(name, envelope, is_local=False)
                if isinstance(message, Bye):
                    self._routes.remove(name)

    def _refuse(self, route: RemoteRoute, reason: str) -> None:
        self.counters["workers_refused"] += 1
        self._warn(route.key, "rejected a worker with the key %r (further times are only counted): %s", reason)
        self._send_remote(route, Reject(reason, fatal=True))

    def _request_hello(self, route: RemoteRoute, message: ToBalancer) -> None:
        """Ask the peer who it is: it has reconnected. Once in a while, as many of its messages may be on their way."""
        self.counters["unknown_worker"] += 1
        now, before = self._loop.time(), self._hello_requested.get(route.identity)
        if isinstance(message, Bye) or (before is not None and now < before + _HELLO_REQUEST_S):
            return
        if len(self._hello_requested) >= _MAX_NAMED:
            self._hello_requested.clear()
        self._hello_requested[route.identity] = now
        self._send_remote(route, Reject("unknown worker: say Hello"))

    def _send_remote(self, route: RemoteRoute, message: Reject) -> None:
        assert self._remote is not None
        with contextlib.suppress(zmq.ZMQError):
            self._remote.send_multipart([route.identity, *encode([BalancerEnvelope(message)])], zmq.DONTWAIT)

    def _decode(self, sender: str, frames: Sequence[Frame]) -> Sequence[WorkerEnvelope]:
        """Return the messages; none if they are malformed."""
        try:
            if sum(map(len, frames)) > self._max_message_bytes:
                raise MalformedFrames(f"it has more than {self._max_message_bytes} bytes")
            return decode_from_worker(frames)
        except MalformedFrames as error:
            self.counters["malformed"] += 1
            self._warn(sender, "dropped a malformed message of %r (further ones are only counted): %s", error)
            return []

    def _warn(self, sender: str, text: str, *values: object) -> None:
        """Log a warning, once for each sender."""
        if sender not in self._named and len(self._named) < _MAX_NAMED:
            self._named.add(sender)
            log.warning(text, sender, *values)
