"""API keys, rate limits, origins and TLS of a real server."""

from __future__ import annotations

import contextlib
import io
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from configs.paths import internal_token, keys_file
from controller.balancer_client import SNAPSHOT, BalancerHttpClient, url_of
from loadbalancer.access import keys_cli
from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, Process, free_port, launch, wait_until
from tests.support.certificates import needs_openssl, self_signed

MODELS = {
    "quick": sim(),
    "slow": sim(t0_s=0.1, max_batch_size=1, defaults={"size": "64x64", "steps": 600}),
    "echo": {"engine": "sim", "api_path": "/echo", "sim": {"task": "call"}, "scaling": {"min_workers": 0}},
}
PAGE = "https://page.example"
DRAW = {"prompt": "a seven", "model": "quick"}
IMAGES, JOBS = "/v1/images/generations", "/v1/jobs/none"
#: Options of `scripts/keys add`.
KEYS = {
    "painter": ["--scope", "images"],
    "batch": ["--scope", "jobs"],
    "chief": ["--scope", "admin"],
    "slow": ["--requests-per-minute", "2"],
    "narrow": ["--max-concurrent", "1"],
    "caller": ["--scope", "calls"],
}


def make_key(data_dir: Path, name: str, *options: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert keys_cli.main(["--data-dir", str(data_dir), "add", name, *options]) == 0
    return shown.getvalue().strip()


@pytest.fixture(scope="module")
def tokens() -> dict[str, str]:
    """Filled by `guarded`."""
    return {"wrong": "sk-muster-wrong"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tokens: dict[str, str]) -> Iterator[Server]:
    """A server with keys and debug logs; at the end no log holds a secret."""
    data_dir = tmp_path_factory.mktemp("guarded")
    tokens |= {name: make_key(data_dir, name, *options) for name, options in KEYS.items()}
    workers = {"quick": 1, "slow": 1}
    with running(data_dir, MODELS, workers, access={"cors_origins": [PAGE]}, log_level="debug") as server:
        tokens["internal"] = internal_token(data_dir)
        yield server
        rejected = httpx.get(f"{server.base_url}/v1/models", headers=bearer(tokens["wrong"]), timeout=PATIENCE_S)
        assert rejected.status_code == 401, "this leaves a line, whichever tests have run"
        logs = server.logs()
        assert "DEBUG" in logs, "it did log all that it can"
        assert "Traceback" not in logs
        for name, token in tokens.items():
            assert token not in logs, f"the log tells the key of {name}"


@pytest.fixture
def http(guarded: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.base_url, timeout=PATIENCE_S) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("GET", "/healthz", {"nobody": 200, "wrong": 200}),
        ("GET", "/readyz", {"nobody": 200}),
        ("GET", "/metrics", {"nobody": 200}),
        ("GET", "/docs", {"nobody": 200}),
        ("GET", "/v1/models", {"nobody": 401, "wrong": 401, "internal": 401, "painter": 200, "chief": 200}),
        ("GET", "/nowhere", {"nobody": 401, "painter": 404}),
        ("POST", IMAGES, {"nobody": 401, "wrong": 401, "internal": 401, "batch": 403, "chief": 403, "painter": 200}),
        ("POST", "/v1/images/edits", {"nobody": 401, "batch": 403, "painter": 400}),
        ("POST", "/predict", {"nobody": 401, "batch": 403, "painter": 200}),
        ("POST", "/v1/chat/completions", {"nobody": 401, "painter": 403, "chief": 403}),
        ("POST", "/v1/responses", {"nobody": 401, "batch": 403}),
        ("POST", "/v1/embeddings", {"nobody": 401, "batch": 403}),
        ("GET", JOBS, {"nobody": 401, "painter": 403, "chief": 403, "batch": 404}),
        ("GET", "/internal/snapshot", {"nobody": 401, "wrong": 401, "painter": 403, "chief": 200, "internal": 200}),
    ],
)
def test_paths_require_their_scope(
    http: httpx.Client, tokens: dict[str, str], method: str, path: str, statuses: dict[str, int]
) -> None:
    content = {"json": DRAW} if method == "POST" else {}
    answered = {
        who: http.request(method, path, headers=bearer(tokens[who]) if who in tokens else {}, **content)  # type: ignore[arg-type]
        for who in statuses
    }
    assert {who: answer.status_code for who, answer in answered.items()} == statuses
    for who, answer in answered.items():
        assert answer.headers["x-request-id"]
        if answer.status_code in (401, 403):
            error = answer.json()["error"]
            codes = {401: "invalid_api_key", 403: "insufficient_permissions"}
            assert (error["type"], error["code"]) == ("invalid_request_error", codes[answer.status_code])
            assert tokens.get(who, "?") not in answer.text


def test_openai_client_raises_auth_errors(guarded: Server, tokens: dict[str, str]) -> None:
    def client(who: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{guarded.base_url}/v1", api_key=tokens[who], max_retries=0)

    with client("wrong") as wrong, pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        wrong.images.generate(prompt="a seven")
    with client("batch") as batch, pytest.raises(openai.PermissionDeniedError, match="lacks the scope 'images'"):
        batch.images.generate(prompt="a seven")
    with client("painter") as painter:
        assert painter.images.generate(prompt="a seven", model="quick").data


def test_rate_limit_is_enforced_and_sent_in_headers(http: httpx.Client, tokens: dict[str, str]) -> None:
    first, second, third = [http.post("/predict", json=DRAW, headers=bearer(tokens["slow"])) for _ in range(3)]
    assert [each.status_code for each in (first, second, third)] == [200, 200, 429]
    assert [each.headers["x-ratelimit-limit-requests"] for each in (first, second, third)] == ["2"] * 3
    assert [each.headers["x-ratelimit-remaining-requests"] for each in (first, second, third)] == ["1", "0", "0"]
    assert third.headers["x-ratelimit-reset-requests"].endswith("s")
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert (third.json()["error"]["type"], third.json()["error"]["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    # Reads are not limited, and other keys have their own limits.
    assert http.get("/v1/models", headers=bearer(tokens["slow"])).status_code == 200
    other = http.post("/predict", json=DRAW, headers=bearer(tokens["painter"]))
    assert other.status_code == 200
    assert "x-ratelimit-limit-requests" not in other.headers


def test_max_concurrent_of_key_is_enforced(http: httpx.Client, tokens: dict[str, str]) -> None:
    mine = bearer(tokens["narrow"])

    def another() -> httpx.Response:
        return http.post("/predict", json=DRAW, headers=mine)

    endless = {"prompt": "a seven", "model": "slow", "stream": True}
    with http.stream("POST", IMAGES, json=endless, headers=mine) as streamed:
        chunks = streamed.iter_bytes()  # held: with its iterator gone, the connection would be closed
        assert next(chunks)
        rejected = another()
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert rejected.headers["retry-after"] == "1"
    wait_until(lambda: another().status_code == 200, "the place of the request that was given up")


@pytest.mark.parametrize(("origin", "allowed"), [(PAGE, True), ("https://other.example", False)])
def test_cors_allows_configured_origins_only(
    http: httpx.Client, tokens: dict[str, str], origin: str, allowed: bool
) -> None:
    asks = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = http.options(IMAGES, headers=asks)
    assert preflight.is_success is allowed
    answer = http.get("/v1/models", headers=bearer(tokens["painter"]) | {"origin": origin})
    for each in (preflight, answer):
        assert each.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert "access-control-allow-credentials" not in each.headers
    assert answer.status_code == (200 if allowed else 403)
    if allowed:
        assert "x-ratelimit-remaining-requests" in answer.headers["access-control-expose-headers"]


def test_key_file_is_reloaded_while_running(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with running(data_dir, {"quick": sim()}, 0) as server:

        def status(token: str = "") -> int:
            headers = bearer(token) if token else {}
            return httpx.get(f"{server.base_url}/v1/models", headers=headers, timeout=PATIENCE_S).status_code

        assert status() == 200
        token = make_key(data_dir, "alice")
        wait_until(lambda: status() == 401, "the first key to close the door")
        assert status(token) == 200
        good = keys_file(data_dir).read_bytes()
        keys_file(data_dir).write_text("keys: [")

        def noticed() -> bool:
            assert (status(token), status()) == (200, 401)  # a request triggers the check of the file
            return "stays in force" in server.log("loadbalancer")

        wait_until(noticed, "the broken file to be noticed")
        assert (status(token), status()) == (200, 401)
        keys_file(data_dir).write_bytes(good)
        assert keys_cli.main(["--data-dir", str(data_dir), "revoke", "alice"]) == 0
        wait_until(lambda: status(token) == 401, "the revoked key to be refused")
        assert status() == 401, "without any key it is closed, not open"


def startup_error(process: Process, data_dir: Path) -> str:
    """Return the error text of a balancer that does not start."""
    try:
        assert process.wait(PATIENCE_S) == 2
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return (data_dir / "loadbalancer.log").read_text()


def test_public_address_without_keys_is_refused(tmp_path: Path) -> None:
    child = launch("loadbalancer", tmp_path, "--host", "0.0.0.0", "--port", str(free_port()), log="loadbalancer")
    message = startup_error(child, tmp_path)
    for fragment in ("server.host 0.0.0.0", "scripts/keys", "--insecure"):
        assert fragment in message


def test_restart_without_key_file_is_refused(tmp_path: Path) -> None:
    make_key(tmp_path, "alice")
    keys_file(tmp_path).unlink()
    child = launch("loadbalancer", tmp_path, "--port", str(free_port()), log="loadbalancer")
    assert "API keys have been in force" in startup_error(child, tmp_path)


@needs_openssl
def test_mismatched_tls_key_is_refused(tmp_path: Path) -> None:
    one, other = self_signed(tmp_path, "one"), self_signed(tmp_path, "other")
    config = tmp_path / "config.yaml"
    config.write_text(f"models: {{m: {{engine: sim}}}}\nserver: {{tls_cert: {one.cert}, tls_key: {other.key}}}\n")
    child = launch("loadbalancer", tmp_path, "--config", str(config), "--port", str(free_port()), log="loadbalancer")
    assert "does not belong to server.tls_cert" in startup_error(child, tmp_path)


@needs_openssl
async def test_https_works_and_controller_uses_it(tmp_path: Path) -> None:
    mine, other = self_signed(tmp_path, "mine"), self_signed(tmp_path, "other")
    config, port = tmp_path / "config.yaml", free_port()
    config.write_text(f"models: {{m: {{engine: sim}}}}\nserver: {{tls_cert: {mine.cert}, tls_key: {mine.key}}}\n")
    child = launch("loadbalancer", tmp_path, "--config", str(config), "--port", str(port), log="loadbalancer")
    try:
        trusting = ssl.create_default_context(cafile=mine.cert)
        wait_until(lambda: healthy(port, verify=trusting), "the first answer over TLS")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            healthy(port, verify=ssl.create_default_context(cafile=other.cert), suppress=())
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE_S)
        token = internal_token(tmp_path)
        url = url_of("127.0.0.1", port, tls=True)
        right = BalancerHttpClient(url, token, mine.cert)
        assert url == f"https://127.0.0.1:{port}"
        snapshot = await right.call(SNAPSHOT)
        assert snapshot is not None
        assert [model.model for model in snapshot.models] == ["m"]
        assert await BalancerHttpClient(url, token, other.cert).call(SNAPSHOT) is None, "it is another's certificate"
        assert await BalancerHttpClient(url_of("127.0.0.1", port, tls=False), token).call(SNAPSHOT) is None
    finally:
        child.kill()
        child.wait(PATIENCE_S)
    assert f"https://127.0.0.1:{port}" in (tmp_path / "loadbalancer.log").read_text()


def healthy(port: int, *, verify: Any, suppress: tuple[type[Exception], ...] = (httpx.TransportError,)) -> bool:
    with contextlib.suppress(*suppress):
        return httpx.get(f"https://127.0.0.1:{port}/healthz", verify=verify, timeout=PATIENCE_S).is_success
    return False


@pytest.mark.parametrize("path", ["/v1/models/echo:predict", "/echo", "/v2/models/echo/infer"])
@pytest.mark.parametrize(("who", "status"), [("", 401), ("painter", 403), ("batch", 403), ("caller", 400)])
def test_calls_need_their_scope(http: httpx.Client, tokens: dict[str, str], path: str, who: str, status: int) -> None:
    headers = bearer(tokens[who]) if who else {}
    answer = http.post(f"{path}?timeout_s=0", content=b'{"inputs": []}', headers=headers)
    assert answer.status_code == status, answer.text
    assert isinstance(answer.json()["error"], str) is path.startswith("/v2"), "each protocol has its own errors"


def test_document_lists_models_for_keys_only(http: httpx.Client, tokens: dict[str, str]) -> None:
    own = {"/echo", "/v1/models/echo:predict"}
    assert not own & http.get("/openapi.json").json()["paths"].keys()
    assert not own & http.get("/openapi.json", headers=bearer(tokens["wrong"])).json()["paths"].keys()
    assert own <= http.get("/openapi.json", headers=bearer(tokens["batch"])).json()["paths"].keys()
