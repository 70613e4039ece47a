"""The balancer's door for workers that come over TCP: who gets in, and a count of who did not."""

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

_REFUSED_KEY = "peers_unknown_key"
_REFUSED_TALK = "peers_not_encrypted"
_KINDS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: _REFUSED_KEY,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: _REFUSED_TALK,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: _REFUSED_TALK,
}
#: Different unknown keys that are named in the log: each stranger can make as many as it likes.
_MOST_NAMED = 100


class PeerKind(enum.Enum):
    """Whose a message is."""

    #: Of a worker on this machine.
    LOCAL = "local"
    #: Of a worker whose key is allowed.
    ALLOWED = "allowed"
    #: Of one whose key was allowed when it connected, and is no more.
    REVOKED = "revoked"


class CannotListen(Exception):
    """The TCP address cannot be had; the text says why."""


class CurveListener:
    """Binds a socket to a TCP address behind CURVE and an allow-list. All methods are called in the event loop."""

    def __init__(self, address: str, own: KeyPair, allowed: Callable[[], frozenset[str]]) -> None:
        """`allowed` gives the public keys that may connect and be heard, asked anew for each connection and message."""
        self._address = address
        self._own = own
        self._allowed = allowed
        self._named: set[bytes] = set()
        #: Connections refused since the start, by why.
        self.refused: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Guard of {self._address}, refused {dict(self.refused)}>"

    def open(self, context: zmq.Context[Any], socket: zmq.Socket[Any]) -> None:
        """Bind the socket. What it was bound to before stays as it was. Raises `CannotListen`."""
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._authenticator = AsyncioAuthenticator(context, log=log)
        self._authenticator.configure_curve_callback(DOMAIN.decode(), self)
        self._authenticator.start()
        self._monitor = socket.get_monitor_socket(sum(_KINDS))
        self._loop.add_reader(self._monitor.fileno(), self._count)
        self._count()  # the descriptor is edge-triggered, and connecting has swallowed the first edge
        secure_server(socket, self._own)
        if "[" in self._address:
            socket.setsockopt(zmq.IPV6, 1)
        try:
            socket.bind(self._address)
        except zmq.ZMQError as error:
            self.close()
            raise CannotListen(f"{self._address}: {error.strerror}") from None

    def close(self) -> None:
        """Let nobody else in. Before the socket is closed and its context ended."""
        self._loop.remove_reader(self._monitor.fileno())
        self._socket.disable_monitor()
        self._monitor.close()
        self._authenticator.stop()

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the key may connect: what the authenticator asks. `key` is Z85."""
        del domain
        if key.decode("ascii") in self._allowed():
            return True
        if key not in self._named and len(self._named) < _MOST_NAMED:
            self._named.add(key)
            log.warning("refused a worker with the unknown key %s (further attempts are only counted)", key.decode())
        return False

    def origin(self, frame: zmq.Frame) -> PeerKind:
        """By which address, and by whose leave, the frame came in."""
        try:
            key = frame.get("User-Id")
        except zmq.ZMQError:  # only what was authenticated has this property
            return PeerKind.LOCAL
        return PeerKind.ALLOWED if key in self._allowed() else PeerKind.REVOKED

    def _count(self) -> None:
        while True:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.DONTWAIT))
            except zmq.Again:
                return
            kind = _KINDS[zmq.Event(event["event"])]
            if kind == _REFUSED_TALK and not self.refused[kind]:
                log.warning("refused a peer that does not speak CURVE (further ones are only counted)")
            self.refused[kind] += 1
