"""Who asks, and what they may. Decides from a path and a bearer token; reads no file and no clock.

A key is 256 random bits, so one round of SHA-256 hides it well enough: what slow hashes guard against is guessing,
and there is nothing to guess. The hash is kept, the key never is.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import msgspec

from loadbalancer.schema.errors import Forbidden, Unauthorized

Scope = Literal["images", "jobs", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
#: What a path asks for: nothing, any key at all, or a key with this scope.
RequiredScope = Literal["nothing", "key"] | Scope

#: Least length of the internal token. An empty one would let in everyone who sends none.
MIN_TOKEN_CHARS = 32
KEY_PREFIX = "sk-muster-"
KEY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
#: Owner of every request while keys are off.
ANONYMOUS = "anonymous"
#: Owner of what the controller asks.
INTERNAL = "internal"

_OPEN = frozenset({"/", "/health", "/healthz", "/livez", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
_NEEDS: tuple[tuple[str, RequiredScope], ...] = (
    ("/internal", "admin"),
    ("/metrics", "admin"),
    ("/v1/jobs", "jobs"),
    ("/v1/images", "images"),
    ("/v1/results", "nothing"),  # the URL of an image cannot be guessed
    ("/predict", "images"),
)

KeyName = Annotated[str, msgspec.Meta(pattern=KEY_NAME)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class ApiKey(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is known of one API key."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...] = ("images", "jobs")
    #: Share of the work, next to the keys of others.
    weight: Positive = 1.0
    requests_per_minute: Count | None = None
    max_concurrent: Count | None = None
    #: Day of its making, for people.
    created: str = ""


class KeyRing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys by name, as the file holds them."""

    keys: dict[KeyName, ApiKey] = {}

    def __post_init__(self) -> None:
        taken = self.keys.keys() & {ANONYMOUS, INTERNAL}
        if taken:
            raise ValueError(f"no key may be named {' or '.join(taken)}: others are called so")

    def find(self, token: str) -> tuple[str, ApiKey] | None:
        """Name and key of the token. Every hash is compared, so that the time tells nothing."""
        given, found = fingerprint(token), None
        for name, key in self.keys.items():
            if hmac.compare_digest(key.sha256, given):
                found = name, key
        return found


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `owner` is the name of the API key, `weight` its share in the queue."""

    owner: str = ANONYMOUS
    weight: float = 1.0
    scopes: frozenset[Scope] = frozenset({"images", "jobs"})
    requests_per_minute: int | None = None
    max_concurrent: int | None = None

    def require(self, scope: Scope) -> None:
        """Raises `Forbidden` where the caller lacks the scope."""
        if scope not in self.scopes:
            raise Forbidden(f"The API key '{self.owner}' lacks the scope '{scope}'.")


@dataclass(frozen=True, slots=True)
class Authenticator:
    """How the server can be reached, as far as it decides what is open."""

    #: What the controller shows for `/internal` and `/metrics`.
    internal_token: str
    #: Only this machine can connect.
    loopback: bool

    def __post_init__(self) -> None:
        if len(self.internal_token) < MIN_TOKEN_CHARS:
            raise ValueError("the internal token is empty or incomplete")

    def enter(self, path: str, authorization: str, ring: KeyRing | None) -> Caller:
        """The caller of the path. Without a ring keys are off. Raises `Unauthorized` and `Forbidden`."""
        need = self.need(path)
        if need == "nothing" or (ring is None and need != "admin"):
            return Caller()
        scheme, _, token = authorization.partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        if need == "admin" and token and hmac.compare_digest(fingerprint(token), fingerprint(self.internal_token)):
            return Caller(INTERNAL, scopes=frozenset({"admin"}))
        if ring is None:
            raise _unauthorized("This path needs the internal token or an API key with the scope 'admin'.")
        caller = _known(token, ring)
        if need != "key":
            caller.require(need)
        return caller

    def need(self, path: str) -> RequiredScope:
        """What the path asks for. One that is not listed needs a key, so that a new one is never open by neglect."""
        if path in _OPEN or (path == "/metrics" and self.loopback):
            return "nothing"
        return next((need for prefix, need in _NEEDS if path == prefix or path.startswith(f"{prefix}/")), "key")


def fingerprint(token: str) -> str:
    """The SHA-256 of a key in hexadecimal digits, as the keys file holds it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def parse_ring(tree: object) -> KeyRing:
    """The keys in a file's content. Raises `msgspec.ValidationError` with what is wrong, never with a value."""
    return msgspec.convert({} if tree is None else tree, KeyRing)


def _known(token: str, ring: KeyRing) -> Caller:
    if not token:
        raise _unauthorized("You did not provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
    found = ring.find(token)
    if found is None:
        raise _unauthorized("Incorrect API key provided.")
    name, key = found
    return Caller(name, key.weight, frozenset(key.scopes), key.requests_per_minute, key.max_concurrent)


def _unauthorized(message: str) -> Unauthorized:
    return Unauthorized(message, headers={"www-authenticate": "Bearer"})
