"""`ApiMiddleware` and metrics around an application that raises."""

from __future__ import annotations

import logging

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import generate_latest
from starlette.types import ASGIApp, Receive, Scope, Send

from configs.sections import Access
from loadbalancer.access.access_control import AccessControl
from loadbalancer.access.api_keys import Authenticator
from loadbalancer.api.app import add_error_handlers
from loadbalancer.api.body_budget import BodyBudget
from loadbalancer.api.middleware import ApiMiddleware
from loadbalancer.metrics.prometheus import Metrics
from tests.support.keys import NoKeys
from wire.inputs import Shape
from wire.messages import StepCurve
from wire.snapshot import ModelStats, Snapshot


def idle() -> Snapshot:
    return Snapshot(time=0.0, uptime_s=1.0, models=[], workers=[])


def unmeasured(model: str) -> list[StepCurve]:
    return []


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that raises; on /late after the response has started."""
    if scope["path"] == "/late":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("secret detail")


def around(app: ASGIApp, metrics: Metrics) -> ApiMiddleware:
    bodies = BodyBudget(1 << 20, 1 << 20, metrics.refusals)
    control = AccessControl(Access(), Authenticator("t" * 43, loopback=False), NoKeys())
    return ApiMiddleware(app, app, Access(), control, metrics, bodies)


async def test_exception_returns_neutral_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(idle, unmeasured)
    transport = httpx.ASGITransport(around(broken, metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        with caplog.at_level(logging.ERROR):
            answered = await http.get("/early", headers={"x-request-id": "mine-1"})
    assert answered.status_code == 500
    assert answered.headers["x-request-id"] == "mine-1"
    error = answered.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "mine-1" in error["message"]
    assert "secret" not in answered.text
    assert "mine-1" in caplog.text
    assert "secret detail" in caplog.text
    assert b'muster_http_requests_total{route="other",status="500"} 1.0' in generate_latest(metrics.registry)


async def test_route_that_raises_is_answered_in_openai_shape(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError("secret detail")

    transport = httpx.ASGITransport(around(app, Metrics(idle, unmeasured)))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        answered = await http.get("/bug", headers={"x-request-id": "mine-2"})
    assert (answered.status_code, answered.headers["x-request-id"]) == (500, "mine-2")
    assert answered.headers["content-type"] == "application/json"
    assert "mine-2" in answered.json()["error"]["message"]
    assert "secret" not in answered.text
    assert caplog.text.count("RuntimeError: secret detail") == 1


async def test_exception_after_start_closes_the_connection() -> None:
    transport = httpx.ASGITransport(around(broken, Metrics(idle, unmeasured)))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        with pytest.raises(RuntimeError, match="secret detail"):
            await http.get("/late")


def test_step_curves_are_exported_as_metrics() -> None:
    stats = ModelStats("m", 0, 0, None, 0.0, 0.0, 0.0)
    curves = {"m": [StepCurve(Shape("64x32", 2048), 4, [(1, 0.25), (4, 0.5)]), StepCurve(Shape("96x96", 9216), 1)]}
    exported = generate_latest(
        Metrics(lambda: Snapshot(0.0, 1.0, [stats], []), lambda model: curves[model]).registry
    ).decode()
    for line in (
        'muster_batch_cap{model="m",shape="64x32"} 4.0',
        'muster_batch_cap{model="m",shape="96x96"} 1.0',
        'muster_step_seconds{batch="1",model="m",shape="64x32"} 0.25',
        'muster_step_seconds{batch="4",model="m",shape="64x32"} 0.5',
    ):
        assert line in exported.splitlines()
