"""CURVE keys of workers that connect over TCP, and the socket options that use them.

CURVE (https://rfc.zeromq.org/spec/25) encrypts and authenticates both sides: the worker knows the balancer's public key
in advance, the balancer knows the public keys of all its workers. A key is 40 characters of Z85.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import zmq

#: Any name, but not empty: without a domain ZeroMQ does not ask the ZAP handler whether a key is allowed.
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
        return f"<KeyPair {self.public}>"  # not the secret: reprs reach logs


class WorkerKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A worker's own keys and the public key of its balancer."""

    public: CurveKey
    secret: CurveKey
    server: CurveKey

    def __repr__(self) -> str:
        return f"<WorkerKey {self.public}>"


class AgentKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of a machine with an agent: the agent's own, those of its workers, and their balancer's public key."""

    agent: KeyPair
    worker: KeyPair
    server: CurveKey

    def __repr__(self) -> str:
        return f"<AgentKey {self.agent.public}>"

    def of_agent(self) -> WorkerKey:
        return WorkerKey(self.agent.public, self.agent.secret, self.server)

    def of_workers(self) -> WorkerKey:
        return WorkerKey(self.worker.public, self.worker.secret, self.server)


class AllowedPeer(NamedTuple):
    """Whose key it is. A worker's key is no agent's key, nor the reverse."""

    name: str
    is_agent: bool = False
    #: A worker that the agent of the machine with this name has started.
    of_agent: bool = False


class AllowedWorker(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A key that is allowed to connect."""

    public: CurveKey
    #: Day of its creation.
    created: str = ""
    #: Public key of the machine's agent; `public` is then the key of the workers that it starts.
    agent: CurveKey | None = None


class AllowedWorkers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of the file of allowed workers, by name."""

    workers: dict[WorkerName, AllowedWorker] = {}

    def peers(self) -> dict[str, AllowedPeer]:
        """Return the peers by public key."""
        agents = {worker.agent: AllowedPeer(name, is_agent=True) for name, worker in self.workers.items()}
        workers = {
            worker.public: AllowedPeer(name, of_agent=worker.agent is not None) for name, worker in self.workers.items()
        }
        return {key: peer for key, peer in agents.items() if key is not None} | workers


Key = TypeVar("Key", WorkerKey, AgentKey)


class BadKey(ValueError):
    """A key file cannot be used. The text names the file and quotes none of its content."""


def read_worker_key(path: Path) -> WorkerKey:
    """Raises `BadKey`, also if other users of this machine can read the file."""
    return _read_key(path, WorkerKey)


def read_agent_key(path: Path) -> AgentKey:
    """Raises `BadKey`, also if other users of this machine can read the file."""
    return _read_key(path, AgentKey)


def _read_key(path: Path, kind: type[Key]) -> Key:
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise BadKey(f"key file {path} can be read by other users; chmod 600 {path}")
        tree = msgspec.yaml.decode(path.read_bytes())
        if kind is WorkerKey and isinstance(tree, dict) and "agent" in tree:
            raise BadKey(f"key file {path} is of an agent: start it with --agent")
        if kind is AgentKey and isinstance(tree, dict) and "public" in tree:
            raise BadKey(f"key file {path} is of a worker; `scripts/keys add-worker --agent` makes one for an agent")
        return msgspec.convert(tree, kind)
    except OSError as error:
        raise BadKey(f"key file {path} cannot be read: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise BadKey(f"key file {path}: {error}") from None
    except msgspec.DecodeError:
        raise BadKey(f"key file {path} is not valid YAML") from None


def new_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def secure_server(socket: zmq.Socket[Any], own: KeyPair) -> None:
    """Require CURVE, and keys that the ZAP handler allows, on endpoints bound afterwards.

    Without a handler every connection is rejected.
    """
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode("ascii"))
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)


def secure_client(socket: zmq.Socket[Any], key: WorkerKey) -> None:
    """Use the key, and accept only its balancer, on connections made afterwards."""
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.CURVE_SERVERKEY, key.server.encode("ascii"))
    socket.setsockopt(zmq.CURVE_PUBLICKEY, key.public.encode("ascii"))
    socket.setsockopt(zmq.CURVE_SECRETKEY, key.secret.encode("ascii"))
    # Without these, the connection to a machine that loses its power would seem open for minutes.
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
