"""Which application a request reaches, and what is read of it before."""

from __future__ import annotations

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.sections import Access
from loadbalancer.access.access_control import AccessControl
from loadbalancer.access.api_keys import Authenticator
from loadbalancer.api.body_budget import BodyBudget
from loadbalancer.api.idempotency_keys import PATHS
from loadbalancer.api.middleware import ApiMiddleware
from loadbalancer.metrics.prometheus import Metrics
from tests.support.keys import NoKeys
from wire.snapshot import Snapshot


@pytest.mark.parametrize(
    ("method", "path", "key", "reached"),
    [
        *[("POST", path, True, "replaying") for path in sorted(PATHS)],
        ("POST", "/predict", False, "plain"),
        ("GET", "/predict", True, "plain"),
        ("POST", "/predict/", True, "plain"),
        ("POST", "/v1/images/other", True, "plain"),
        ("POST", "/v1/jobs", True, "plain"),
        ("POST", "/healthz", True, "plain"),
        ("POST", "/readyz", True, "plain"),
        ("POST", "/docs", True, "plain"),
        ("POST", "/openapi.json", True, "plain"),
        ("POST", "/v1/models", True, "plain"),
        ("POST", "/nowhere", True, "plain"),
    ],
)
async def test_only_requests_for_images_are_replayed(method: str, path: str, key: bool, reached: str) -> None:
    seen: list[str] = []

    def application(name: str) -> ASGIApp:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(name)
            await send({"type": "http.response.start", "status": 200, "headers": []})

        return answer

    metrics = Metrics(lambda: Snapshot(0.0, 1.0, [], []), lambda model: [])
    plain, replaying = application("plain"), application("replaying")
    bodies = BodyBudget(1 << 20, 1 << 20, metrics.refusals)
    control = AccessControl(Access(), Authenticator("t" * 43, loopback=False), NoKeys())
    app = ApiMiddleware(plain, replaying, Access(), control, metrics, bodies)
    headers = [(b"idempotency-key", b"k")] if key else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers}

    async def receive() -> Message:
        raise AssertionError("the body is not needed to choose")

    async def send(message: Message) -> None:
        assert dict(message["headers"])[b"x-request-id"]

    await app(scope, receive, send)
    assert seen == [reached]
