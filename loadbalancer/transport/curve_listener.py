"""The TCP endpoint for workers on other machines: CURVE encryption, an allow-list of keys, and counts of rejections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket as sockets
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import zmq
from zmq.asyncio import Poller
from zmq.auth import Authenticator
from zmq.utils.monitor import parse_monitor_message

from configs.open_files import is_reserved
from loadbalancer.background_tasks import TaskSupervisor
from wire.curve import DOMAIN, AllowedPeer, KeyPair, secure_server

log = logging.getLogger(__name__)

_UNKNOWN_KEY = "peers_unknown_key"
_NOT_ENCRYPTED = "peers_not_encrypted"
_TOO_MANY = "peers_too_many_open_files"
_KINDS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: _UNKNOWN_KEY,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: _NOT_ENCRYPTED,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: _NOT_ENCRYPTED,
}
#: Unknown keys that are named in the log: anyone can make as many as they like.
_MAX_NAMED = 100


class CannotListen(Exception):
    """An address for workers cannot be bound; the text contains the reason."""


class CurveListener:
    """Binds a socket to a TCP address with CURVE and an allow-list. All methods are called in the event loop.

    `allowed` returns the owners of the allowed public keys; it is called for each connection and each message.
    """

    def __init__(self, address: str, own: KeyPair, allowed: Callable[[], Mapping[str, AllowedPeer]]) -> None:
        self._address = address
        self._own = own
        self._allowed = allowed
        self._named: set[bytes] = set()
        self._tasks = TaskSupervisor()
        #: Rejected connections since the start, by reason.
        self.rejected: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<CurveListener of {self._address}, rejected {dict(self.rejected)}>"

    @property
    def task_failures(self) -> Counter[str]:
        """Unexpected failures since the start, by name of the background task."""
        return self._tasks.failures

    def open(self, context: zmq.Context[Any], socket: zmq.Socket[Any]) -> None:
        """Bind the socket. Raises `CannotListen`."""
        self._socket = socket
        self._context = context
        self._loop = asyncio.get_running_loop()
        # At once: without one, every connection is rejected.
        self._authenticator: Authenticator | None = self._start_authenticator()
        self._tasks.run_forever("worker_authentication", self._authenticate)
        self._monitor = socket.get_monitor_socket(sum(_KINDS) | zmq.EVENT_ACCEPTED)
        self._loop.add_reader(self._monitor.fileno(), self._on_events)
        self._on_events()  # the descriptor is edge-triggered, and connecting has swallowed the first edge
        secure_server(socket, self._own)
        if "[" in self._address:
            socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.bind(self._address)
        except zmq.ZMQError as error:
            self._stop_monitoring()
            self._authenticator.stop()
            raise CannotListen(f"workers.listen is not available: {self._address}: {error.strerror}") from None

    async def close(self) -> None:
        """Stop the authentication. Call this before the socket is closed."""
        self._stop_monitoring()
        await self._tasks.stop()
        if self._authenticator is not None:
            self._authenticator.stop()

    def _stop_monitoring(self) -> None:
        self._loop.remove_reader(self._monitor.fileno())
        self._socket.disable_monitor()
        self._monitor.close()

    def _start_authenticator(self) -> Authenticator:
        authenticator = Authenticator(self._context, log=log)
        authenticator.configure_curve_callback(DOMAIN.decode(), self)
        authenticator.start()
        return authenticator

    async def _authenticate(self) -> None:
        """Answer ZeroMQ's questions about keys. After a failure, the next run begins with a new authenticator."""
        if self._authenticator is None:
            self._authenticator = self._start_authenticator()
        authenticator, poller = self._authenticator, Poller()
        zap_socket = authenticator.zap_socket
        poller.register(zap_socket, zmq.POLLIN)
        try:
            while True:
                await poller.poll()
                with contextlib.suppress(zmq.Again):
                    await authenticator.handle_zap_message(zap_socket.recv_multipart(zmq.DONTWAIT))
        except Exception:
            authenticator.stop()  # its socket waits for an answer that nobody will send
            self._authenticator = None
            raise

    def agent_names(self) -> frozenset[str]:
        """Return the machines whose agents may connect."""
        return frozenset(peer.name for peer in self._allowed().values() if peer.is_agent)

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the Z85 key may connect; called by the authenticator."""
        del domain
        if key.decode("ascii") in self._allowed():
            return True
        if key not in self._named and len(self._named) < _MAX_NAMED:
            self._named.add(key)
            log.warning("rejected a worker with the unknown key %s (further attempts are only counted)", key.decode())
        return False

    def peer(self, frame: zmq.Frame) -> AllowedPeer | None:
        """Return the owner of the sender's key; None if it was allowed when it connected, and is not any more."""
        return self._allowed().get(str(frame.get("User-Id")))

    def _on_events(self) -> None:
        while True:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                return
            if event["event"] == zmq.EVENT_ACCEPTED:
                if is_reserved(event["value"]):
                    self._refuse(event["value"])
                continue
            kind = _KINDS[zmq.Event(event["event"])]
            if kind == _NOT_ENCRYPTED and not self.rejected[kind]:
                log.warning("rejected a peer without CURVE encryption (further ones are only counted)")
            self.rejected[kind] += 1

    def _refuse(self, descriptor: int) -> None:
        """End a connection that has taken one of the last descriptors: ZeroMQ has no bound for those without a key.

        It may have ended by itself, and the number may be that of another file by now.
        """
        if not self.rejected[_TOO_MANY]:
            log.warning("too many open files: connections at %s are refused", self._address)
        self.rejected[_TOO_MANY] += 1
        port = int(self._address.rpartition(":")[2])
        with contextlib.suppress(OSError):
            connection = sockets.socket(fileno=descriptor)
            try:
                if connection.getsockname()[1:2] == (port,):
                    connection.shutdown(sockets.SHUT_RDWR)
            finally:
                connection.detach()  # it is ZeroMQ's
