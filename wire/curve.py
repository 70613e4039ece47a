"""Keys for workers that come over TCP: what they look like, and what they do to a socket.

CURVE (https://rfc.zeromq.org/spec/25) encrypts, and proves each side to the other: the worker knows the balancer's
public key beforehand, the balancer knows the public keys of all its workers. A key is 40 characters of Z85.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated, Any

import msgspec
import zmq

#: Any name will do, but there must be one: without it ZeroMQ asks nobody whether a key is allowed.
DOMAIN = b"workers"
_HEARTBEAT_MS = 5000
_SILENCE_MS = 15_000

CurveKey = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$")]
WorkerName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class KeyPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The balancer's own keys."""

    public: CurveKey
    secret: CurveKey

    def __repr__(self) -> str:
        return f"<KeyPair {self.public}>"  # never the secret: logs hold what is printed


class WorkerKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a worker needs to join: its own keys, and that of the balancer that it trusts."""

    public: CurveKey
    secret: CurveKey
    server: CurveKey

    def __repr__(self) -> str:
        return f"<WorkerKey {self.public}>"


class AllowedWorker(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A key that may connect."""

    public: CurveKey
    #: Day of its making, for people.
    created: str = ""


class AllowedWorkers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The workers that may connect, by name, as their file holds them."""

    workers: dict[WorkerName, AllowedWorker] = {}

    def publics(self) -> frozenset[str]:
        """Their public keys."""
        return frozenset(worker.public for worker in self.workers.values())


class BadKey(ValueError):
    """A key file cannot be used; the text names it, and holds nothing of its content."""


def read_worker_key(path: Path) -> WorkerKey:
    """The key in the file. Raises `BadKey`, also where other users of this machine can read it."""
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise BadKey(f"key file {path} can be read by other users; chmod 600 {path}")
        return msgspec.yaml.decode(path.read_bytes(), type=WorkerKey)
    except OSError as error:
        raise BadKey(f"key file {path} cannot be read: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise BadKey(f"key file {path}: {error}") from None
    except msgspec.DecodeError:
        raise BadKey(f"key file {path} is not valid YAML") from None


def new_pair() -> KeyPair:
    """A new key."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def secure_server(socket: zmq.Socket[Any], own: KeyPair) -> None:
    """Addresses bound from now on take nothing but CURVE, and only keys that the ZAP handler allows.

    Where no handler answers, nobody gets in.
    """
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode("ascii"))
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def secure_client(socket: zmq.Socket[Any], key: WorkerKey) -> None:
    """Connections made from now on show the key, and trust no balancer but its own."""
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.CURVE_SERVERKEY, key.server.encode("ascii"))
    socket.setsockopt(zmq.CURVE_PUBLICKEY, key.public.encode("ascii"))
    socket.setsockopt(zmq.CURVE_SECRETKEY, key.secret.encode("ascii"))
    # A machine that loses its power says no goodbye: without these the connection to it would seem open for minutes.
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
