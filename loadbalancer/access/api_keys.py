"""Authentication and authorization: maps a path and a bearer token to a caller. Pure.

Only the SHA-256 of a key is stored. One round is enough: a key has 256 random bits, so a slow hash against guessing is
not needed.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import msgspec

from loadbalancer.schema.errors import Forbidden, Unauthorized

Scope = Literal["images", "text", "calls", "jobs", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
#: Scopes of a key that names none.
DEFAULT_SCOPES: tuple[Scope, ...] = ("images", "text", "calls", "jobs")
#: What a path requires: nothing, any key, or a key with this scope.
#: `page`: an administrator's key; on a server without keys that listens on loopback, nothing.
RequiredScope = Literal["nothing", "key", "page"] | Scope

#: Minimum length of the internal token. With an empty one, requests without a token would pass.
MIN_TOKEN_CHARS = 32
KEY_PREFIX = "sk-muster-"
KEY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
#: Owner of every request while keys are off.
ANONYMOUS = "anonymous"
#: Owner of the controller's requests.
INTERNAL = "internal"

_HEALTH = frozenset({"/health", "/healthz", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
_OPEN = _HEALTH | {"/", "/docs", "/openapi.json"}
_NEEDS: tuple[tuple[str, RequiredScope], ...] = (
    ("/internal", "admin"),
    ("/ui/files", "nothing"),
    ("/ui/session", "key"),
    ("/ui/usage", "key"),  # of others, for administrators only
    ("/ui", "page"),
    ("/metrics", "admin"),
    ("/v1/jobs", "jobs"),
    ("/v1/images", "images"),
    ("/v1/chat", "text"),
    ("/v1/completions", "text"),
    ("/v1/responses", "text"),
    ("/v1/embeddings", "calls"),
    ("/v1/results", "nothing"),  # the URL of an image cannot be guessed
    ("/predict", "images"),
)
#: Beginning and end of the paths of calls; the model's name is between.
_CALLS = (("/v1/models/", ":predict"), ("/v2/models/", "/infer"))

KeyName = Annotated[str, msgspec.Meta(pattern=KEY_NAME)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=10**12)]


class ApiKey(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One API key: its hash, scopes and limits."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    #: Share of worker time relative to other keys.
    weight: Positive = 1.0
    requests_per_minute: Count | None = None
    max_concurrent: Count | None = None
    #: Date of creation, for display.
    created: str = ""
    #: Tokens of prompts and of texts.
    tokens_per_minute: Tokens | None = None

    def caller(self, name: str) -> Caller:
        """Return who sends requests with this key."""
        return Caller(
            name,
            self.weight,
            frozenset(self.scopes),
            self.requests_per_minute,
            self.max_concurrent,
            self.tokens_per_minute,
        )


class KeyRing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The API keys by name: the content of the key file."""

    keys: dict[KeyName, ApiKey] = {}

    def __post_init__(self) -> None:
        taken = self.keys.keys() & {ANONYMOUS, INTERNAL}
        if taken:
            raise ValueError(f"a key must not be named {' or '.join(taken)}: the name is reserved")

    def callers(self) -> dict[str, Caller]:
        """Return the owners of the keys by hash.

        The time of a look-up by hash reveals nothing of use: nobody can choose a token by the digits of its hash.
        """
        return {key.sha256: key.caller(name) for name, key in self.keys.items()}


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. `owner` is the name of the API key, `weight` its share in the queue."""

    owner: str = ANONYMOUS
    weight: float = 1.0
    scopes: frozenset[Scope] = frozenset(DEFAULT_SCOPES)
    requests_per_minute: int | None = None
    max_concurrent: int | None = None
    tokens_per_minute: int | None = None

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` if the caller lacks the scope."""
        if scope not in self.scopes:
            raise Forbidden(f"The API key '{self.owner}' lacks the scope '{scope}'.")


class Authenticator:
    """Authenticates requests by path and bearer token."""

    def __init__(self, internal_token: str, loopback: bool, call_paths: Iterable[str] = ()) -> None:
        """`internal_token` is the controller's, for `/internal` and `/metrics`. Raises `ValueError` for a short one.

        `loopback`: only this machine can connect. `call_paths` are the models' own paths.
        """
        if len(internal_token) < MIN_TOKEN_CHARS:
            raise ValueError("the internal token is empty or incomplete")
        self.internal_token = internal_token
        self.loopback = loopback
        self._call_paths = frozenset(call_paths)
        #: The ring of the last request, and its callers by hash.
        self._ring: KeyRing | None = None
        self._callers: dict[str, Caller] = {}
        #: Paths that require nothing.
        self.open_paths = _OPEN | {"/metrics"} if loopback else _OPEN

    def required_scope(self, path: str) -> RequiredScope:
        """Return what the path requires."""
        # One with a slash at its end does not exist, which everyone may know who may read the path without it.
        if path in self.open_paths or (path[-1:] == "/" and path.rstrip("/") in self.open_paths):
            return "nothing"
        return "calls" if path in self._call_paths else required_scope(path)

    def enter(self, path: str, authorization: str, ring: KeyRing | None) -> Caller:
        """Return the caller. Without a ring no path requires an API key. Raises `Unauthorized` and `Forbidden`."""
        need = self.required_scope(path)
        if need == "page":
            need = "key" if ring is None and self.loopback else "admin"
        if need == "nothing" or (ring is None and need != "admin"):
            return _ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        if need == "admin" and token and hmac.compare_digest(fingerprint(token), fingerprint(self.internal_token)):
            return Caller(INTERNAL, scopes=frozenset({"admin"}))
        if ring is None:
            raise _unauthorized("This path needs the internal token or an API key with the scope 'admin'.")
        caller = self._find(token, ring)
        if need != "key":
            caller.require(need)
        return caller

    def _find(self, token: str, ring: KeyRing) -> Caller:
        if not token:
            raise _unauthorized("You did not provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
        if ring is not self._ring:
            self._ring, self._callers = ring, ring.callers()
        caller = self._callers.get(fingerprint(token))
        if caller is None:
            raise _unauthorized("Incorrect API key provided.")
        return caller


_ANONYMOUS = Caller()


@functools.lru_cache(maxsize=64)  # of paths, most of which come again and again
def required_scope(path: str) -> RequiredScope:
    """Return what a path requires that is not open. An unlisted one requires a key: new paths are closed by default."""
    if any(path.startswith(start) and path.endswith(end) for start, end in _CALLS):
        return "calls"
    return next((need for prefix, need in _NEEDS if path == prefix or path.startswith(f"{prefix}/")), "key")


def fingerprint(token: str) -> str:
    """Return the SHA-256 of a key in hexadecimal digits, as in the key file."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def parse_ring(tree: object) -> KeyRing:
    """Return the keys in a file's content. Raises `msgspec.ValidationError`, whose text holds no value of the file."""
    return msgspec.convert({} if tree is None else tree, KeyRing)


def _unauthorized(message: str) -> Unauthorized:
    return Unauthorized(message, headers={"www-authenticate": "Bearer"})
