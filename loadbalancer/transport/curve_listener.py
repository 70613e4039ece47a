"""The TCP endpoint for workers on other machines: CURVE encryption, an allow-list of keys, and counts of rejections."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import zmq
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils.monitor import parse_monitor_message

from wire.curve import DOMAIN, KeyPair, secure_server

log = logging.getLogger(__name__)

_UNKNOWN_KEY = "peers_unknown_key"
_NOT_ENCRYPTED = "peers_not_encrypted"
_KINDS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: _UNKNOWN_KEY,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: _NOT_ENCRYPTED,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: _NOT_ENCRYPTED,
}
#: Unknown keys that are named in the log: anyone can make as many as they like.
_MAX_NAMED = 100


class PeerKind(enum.Enum):
    """The sender of a message."""

    #: A worker on this machine.
    LOCAL = "local"
    #: A worker whose key is allowed.
    ALLOWED = "allowed"
    #: A worker whose key was allowed when it connected, and is not any more.
    REVOKED = "revoked"


class CannotListen(Exception):
    """An address for workers cannot be bound; the text contains the reason."""


class CurveListener:
    """Binds a socket to a TCP address with CURVE and an allow-list. All methods are called in the event loop.

    `allowed` returns the allowed public keys; it is called for each connection and each message.
    """

    def __init__(self, address: str, own: KeyPair, allowed: Callable[[], frozenset[str]]) -> None:
        self._address = address
        self._own = own
        self._allowed = allowed
        self._named: set[bytes] = set()
        #: Rejected connections since the start, by reason.
        self.rejected: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<CurveListener of {self._address}, rejected {dict(self.rejected)}>"

    def open(self, context: zmq.Context[Any], socket: zmq.Socket[Any]) -> None:
        """Bind the socket. Earlier bindings stay unencrypted. Raises `CannotListen`."""
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._authenticator = AsyncioAuthenticator(context, log=log)
        self._authenticator.configure_curve_callback(DOMAIN.decode(), self)
        self._authenticator.start()
        self._monitor = socket.get_monitor_socket(sum(_KINDS))
        self._loop.add_reader(self._monitor.fileno(), self._count_rejections)
        self._count_rejections()  # the descriptor is edge-triggered, and connecting has swallowed the first edge
        secure_server(socket, self._own)
        if "[" in self._address:
            socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.bind(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise CannotListen(f"workers.listen is not available: {self._address}: {error.strerror}") from None

    def close(self) -> None:
        """Stop the authentication. Call this before the socket is closed."""
        self._loop.remove_reader(self._monitor.fileno())
        self._socket.disable_monitor()
        self._monitor.close()
        self._authenticator.stop()

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether the Z85 key may connect; called by the authenticator."""
        del domain
        if key.decode("ascii") in self._allowed():
            return True
        if key not in self._named and len(self._named) < _MAX_NAMED:
            self._named.add(key)
            log.warning("rejected a worker with the unknown key %s (further attempts are only counted)", key.decode())
        return False

    def peer_kind(self, frame: zmq.Frame) -> PeerKind:
        """Return who sent the frame."""
        try:
            key = frame.get("User-Id")
        except zmq.ZMQError:  # only authenticated frames have this property
            return PeerKind.LOCAL
        return PeerKind.ALLOWED if key in self._allowed() else PeerKind.REVOKED

    def _count_rejections(self) -> None:
        while True:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                return
            kind = _KINDS[zmq.Event(event["event"])]
            if kind == _NOT_ENCRYPTED and not self.rejected[kind]:
                log.warning("rejected a peer without CURVE encryption (further ones are only counted)")
            self.rejected[kind] += 1
