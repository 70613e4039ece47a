"""Authentication and authorization by keys, scopes and paths."""

from __future__ import annotations

import msgspec
import pytest

from loadbalancer.access.api_keys import (
    ANONYMOUS,
    INTERNAL,
    ApiKey,
    Authenticator,
    Caller,
    KeyRing,
    fingerprint,
    parse_ring,
)
from loadbalancer.schema.errors import Forbidden, Unauthorized

INTERNAL_TOKEN = "internal-token-" + "x" * 28
AUTHENTICATOR = Authenticator(INTERNAL_TOKEN, loopback=True, call_paths=["/classify"])
EXPOSED = Authenticator(INTERNAL_TOKEN, loopback=False, call_paths=["/classify"])
RING = KeyRing(
    {
        "painter": ApiKey(fingerprint("sk-painter"), ("images",), 2.5, 60, 4),
        "batch": ApiKey(fingerprint("sk-batch"), ("jobs",)),
        "caller": ApiKey(fingerprint("sk-caller"), ("calls",)),
        "chief": ApiKey(fingerprint("sk-chief"), ("admin",)),
    }
)
TOKENS = {
    "nobody": "",
    "wrong": "Bearer sk-painte",
    "longer": "Bearer sk-painter0",
    "bare": "sk-painter",
    "basic": "Basic sk-painter",
    "hash": f"Bearer {fingerprint('sk-painter')}",
    "painter": "Bearer sk-painter",
    "lower": "bearer  sk-painter ",
    "batch": "Bearer sk-batch",
    "caller": "Bearer sk-caller",
    "chief": "Bearer sk-chief",
    "internal": f"Bearer {INTERNAL_TOKEN}",
    "strange": "Bearer \udcff\u00e9",
}
#: By path: the accepted callers, and known callers without the scope. All others are unauthorized.
TABLE = [
    ("/healthz", set(TOKENS), set()),
    ("/readyz", set(TOKENS), set()),
    ("/docs", set(TOKENS), set()),
    ("/openapi.json", set(TOKENS), set()),
    ("/", set(TOKENS), set()),
    ("/v1/models", {"painter", "lower", "batch", "caller", "chief"}, set()),
    ("/nowhere", {"painter", "lower", "batch", "caller", "chief"}, set()),
    ("/healthz/", set(TOKENS), set()),
    ("/healthz/x", {"painter", "lower", "batch", "caller", "chief"}, set()),
    ("/v1/images/generations", {"painter", "lower"}, {"batch", "caller", "chief"}),
    ("/v1/images/edits", {"painter", "lower"}, {"batch", "caller", "chief"}),
    ("/predict", {"painter", "lower"}, {"batch", "caller", "chief"}),
    ("/v1/models/a/b:predict", {"caller"}, {"painter", "lower", "batch", "chief"}),
    ("/v2/models/a/infer", {"caller"}, {"painter", "lower", "batch", "chief"}),
    ("/classify", {"caller"}, {"painter", "lower", "batch", "chief"}),
    ("/classify/more", {"painter", "lower", "batch", "caller", "chief"}, set()),
    ("/v2/models/a", {"painter", "lower", "batch", "caller", "chief"}, set()),
    ("/v2/health/live", set(TOKENS), set()),
    ("/v2/health/ready", set(TOKENS), set()),
    ("/v1/jobs", {"batch"}, {"painter", "lower", "caller", "chief"}),
    ("/v1/jobs/1/events", {"batch"}, {"painter", "lower", "caller", "chief"}),
    ("/ui/files/app.js", set(TOKENS), set()),
    ("/ui/session", {"painter", "lower", "batch", "caller", "chief"}, set()),
    ("/ui/usage", {"painter", "lower", "batch", "caller", "chief"}, set()),
    ("/ui/events", {"chief", "internal"}, {"painter", "lower", "batch", "caller"}),
    ("/ui/scale", {"chief", "internal"}, {"painter", "lower", "batch", "caller"}),
    ("/internal/snapshot", {"chief", "internal"}, {"painter", "lower", "batch", "caller"}),
    ("/internal", {"chief", "internal"}, {"painter", "lower", "batch", "caller"}),
]


def outcome(authenticator: Authenticator, path: str, who: str, ring: KeyRing | None = RING) -> str:
    try:
        authenticator.enter(path, TOKENS[who], ring)
    except Unauthorized:
        return "stranger"
    except Forbidden:
        return "lacks the scope"
    return "in"


@pytest.mark.parametrize(("path", "let_in", "lacking"), TABLE, ids=[row[0] for row in TABLE])
def test_with_keys_each_path_requires_its_scope(path: str, let_in: set[str], lacking: set[str]) -> None:
    expected = {who: "in" if who in let_in else "lacks the scope" if who in lacking else "stranger" for who in TOKENS}
    assert {who: outcome(AUTHENTICATOR, path, who) for who in TOKENS} == expected


@pytest.mark.parametrize("path", [row[0] for row in TABLE])
def test_without_keys_only_internal_paths_are_closed(path: str) -> None:
    let_in = {"internal"} if path.startswith("/internal") else set(TOKENS)
    assert {who for who in TOKENS if outcome(AUTHENTICATOR, path, who, None) == "in"} == let_in


def test_page_is_open_without_keys_on_loopback_only() -> None:
    assert {who for who in TOKENS if outcome(EXPOSED, "/ui/scale", who, None) == "in"} == {"internal"}
    assert {who for who in TOKENS if outcome(EXPOSED, "/ui/session", who, None) == "in"} == set(TOKENS)


def test_metrics_are_open_on_loopback_only() -> None:
    for path in ("/metrics", "/metrics/"):
        assert {outcome(AUTHENTICATOR, path, who) for who in TOKENS} == {"in"}
        assert {who for who in TOKENS if outcome(EXPOSED, path, who) == "in"} == {"chief", "internal"}
        assert {who for who in TOKENS if outcome(EXPOSED, path, who, None) == "in"} == {"internal"}


def test_empty_key_file_accepts_no_caller() -> None:
    assert parse_ring(None) == KeyRing()
    assert outcome(AUTHENTICATOR, "/v1/models", "painter", KeyRing()) == "stranger"


def test_caller_has_the_name_of_its_key() -> None:
    painter = AUTHENTICATOR.enter("/predict", TOKENS["painter"], RING)
    assert painter == Caller("painter", 2.5, frozenset({"images"}), 60, 4)
    assert AUTHENTICATOR.enter("/predict", "", None) == Caller(ANONYMOUS, 1.0)
    internal = AUTHENTICATOR.enter("/internal/snapshot", TOKENS["internal"], RING)
    assert (internal.owner, internal.scopes) == (INTERNAL, frozenset({"admin"}))
    with pytest.raises(Forbidden, match="'painter' lacks the scope 'jobs'"):
        painter.require("jobs")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"a": {"sha256": "short"}}, "sha256"),
        ({"a": {}}, "sha256"),
        ({"a": {"sha256": "0" * 64, "scopes": ["root"]}}, "scopes"),
        ({"a": {"sha256": "0" * 64, "weight": 0}}, "weight"),
        ({"a": {"sha256": "0" * 64, "weight": float("nan")}}, "weight"),
        ({"a": {"sha256": "0" * 64, "requests_per_minute": 0}}, "requests_per_minute"),
        ({"a": {"sha256": "0" * 64, "max_concurent": 1}}, "max_concurent"),
        ({"a b": {"sha256": "0" * 64}}, "key"),
        ({"anonymous": {"sha256": "0" * 64}}, "a key must not be named anonymous"),
        ({"internal": {"sha256": "0" * 64}}, "a key must not be named internal"),
        ([], "keys"),
    ],
)
def test_invalid_key_file_is_rejected(keys: object, message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        parse_ring({"keys": keys})


@pytest.mark.parametrize("token", ["", " ", "x", "x" * 31])
def test_short_internal_token_is_never_accepted(token: str) -> None:
    with pytest.raises(ValueError, match="internal token is empty or incomplete"):
        Authenticator(token, loopback=True)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer  ", "bearer \t"])
def test_missing_token_is_not_the_internal_token(header: str) -> None:
    for ring in (None, RING):
        with pytest.raises(Unauthorized):
            AUTHENTICATOR.enter("/internal/snapshot", header, ring)


def test_a_changed_ring_is_in_force_at_once() -> None:
    found = Authenticator(INTERNAL_TOKEN, loopback=True)
    for _ in range(2):
        assert found.enter("/v1/jobs", TOKENS["batch"], RING).owner == "batch"
        with pytest.raises(Unauthorized):
            found.enter("/v1/jobs", TOKENS["batch"], KeyRing({"other": RING.keys["painter"]}))
        assert found.enter("/v1/jobs", TOKENS["batch"], KeyRing({"renamed": RING.keys["batch"]})).owner == "renamed"
