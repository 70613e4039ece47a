"""Requests that pages of other sites send to a server on this machine are rejected."""

from __future__ import annotations

import httpx
import pytest

from scripts.harness.balancer import Server, sim
from scripts.harness.processes import PATIENCE_S
from tests.conftest import StartServer

DRAW = '{"prompt": "a seven"}'
#: CORS simple requests: a form or script of any page can send these without a preflight.
SIMPLE = {"content-type": "text/plain"}


def submitted(http: httpx.Client) -> str:
    return next(line for line in http.get("/metrics").text.splitlines() if 'event="submitted"' in line)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "https://evil.example"}, "origin_not_allowed"),
        ({"origin": "null"}, "origin_not_allowed"),
        ({"host": "evil.example"}, "host_not_allowed"),
        ({"host": "evil.example", "origin": "http://evil.example"}, "host_not_allowed"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/predict"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs")])
def test_foreign_pages_are_rejected(
    http: httpx.Client, headers: dict[str, str], code: str, method: str, path: str
) -> None:
    assert http.post("/predict", content=DRAW, headers=SIMPLE).status_code == 200
    before = submitted(http)
    rejected = http.request(method, path, content=DRAW, headers=SIMPLE | headers)
    assert rejected.status_code == 403
    assert rejected.headers["x-request-id"]
    assert "access-control-allow-origin" not in rejected.headers
    error = rejected.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, code)
    assert submitted(http) == before


def test_own_pages_are_allowed(shared: Server, http: httpx.Client) -> None:
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{shared.port}"
        own = {"host": host, "origin": f"http://{host}"}
        assert http.post("/predict", content=DRAW, headers=SIMPLE | own).status_code == 200


def test_server_behind_proxy_accepts_configured_hosts(server: StartServer) -> None:
    started = server({"sim": sim()}, 0, access={"hosts": ["muster.example"], "insecure": True})

    def status(**headers: str) -> int:
        return httpx.get(f"{started.base_url}/v1/models", headers=headers, timeout=PATIENCE_S).status_code

    assert status(host="muster.example") == 200
    assert status(host="muster.example", origin="https://muster.example") == 200
    assert status(host="other.example") == 403
