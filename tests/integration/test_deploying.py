"""The files of `docs/deploy` with the programs that read them."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from configs.paths import jobs_file
from loadbalancer.access import keys_cli
from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, ROOT, child_process, free_port, stop, wait_until
from tests.contract.http.test_access import make_key
from tests.support.certificates import needs_openssl, self_signed

DEPLOY = ROOT / "docs" / "deploy"
HOST = "gpu.example.org"
NEEDS_NGINX = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
NGINX = """\
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    include {folder}/muster.conf;
}}
"""


@contextlib.contextmanager
def proxied(server: Server, folder: Path) -> Iterator[httpx.Client]:
    """Run nginx with our file in front of the server. Yields a client of it."""
    folder.mkdir()
    cert, key = self_signed(folder, HOST)
    port = free_port()
    text = (DEPLOY / "nginx.conf").read_text()
    for ours, here in (
        ("127.0.0.1:8000", f"127.0.0.1:{server.port}"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/gpu.example.org.pem", str(cert)),
        ("/etc/ssl/private/gpu.example.org.key", str(key)),
    ):
        assert text.count(ours) == 1
        text = text.replace(ours, here)
    (folder / "muster.conf").write_text(text)
    # As root its workers would be another user, who cannot write to this folder.
    user = "user root; " if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(user + NGINX.format(folder=folder))
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    url = f"https://127.0.0.1:{port}"
    with (
        child_process(command) as nginx,
        httpx.Client(base_url=url, verify=False, headers={"host": HOST}, timeout=PATIENCE_S) as client,
    ):
        try:
            wait_until(lambda: answers(client), "nginx")
            yield client
        finally:
            stop(nginx)  # killed, it would leave its workers


def answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/healthz").is_success
    return False


@needs_openssl
@NEEDS_NGINX
def test_nginx_passes_everything_on(tmp_path: Path) -> None:
    access = {"hosts": [HOST]}
    (tmp_path / "data").mkdir()
    key = make_key(tmp_path / "data", "alice")  # whoever the proxy speaks for
    with (
        running(tmp_path / "data", {"m": sim(t0_s=0.02)}, 1, access=access) as server,
        proxied(server, tmp_path / "nginx") as client,
    ):
        body: dict[str, Any] = {"prompt": "a seven", "num_inference_steps": 2}
        assert client.post("/v1/images/generations", json=body).status_code == 401
        client.headers["authorization"] = f"Bearer {key}"
        made = client.post("/v1/images/generations", json=body)
        assert base64.b64decode(made.json()["data"][0]["b64_json"]).startswith(b"\x89PNG")
        assert len(made.headers["x-request-id"]) == 32, "nginx's id"
        # An upload that is larger than nginx's default limit.
        noise = Image.frombytes("RGB", (1200, 1200), os.urandom(3 * 1200 * 1200))
        file = io.BytesIO()
        noise.save(file, "PNG")
        assert len(file.getvalue()) > 4 << 20
        edited = client.post(
            "/v1/images/edits", files={"image": file.getvalue()}, data={"prompt": "a", "size": "64x64"}
        )
        assert edited.status_code == 200, edited.text
        # Events arrive before the end.
        with client.stream(
            "POST", "/v1/images/generations", json=body | {"stream": True, "num_inference_steps": 1000}
        ) as events:
            first = next(events.iter_text())
            assert "event:" in first
            assert "completed" not in first
        # The stream was left: its image is cancelled.
        wait_until(lambda: all(model.running == 0 for model in server.snapshot().models), "a cancelled image")
        upgrade = {
            "connection": "Upgrade, HTTP2-Settings",
            "upgrade": "h2c",
            "http2-settings": "AAMAAABkAAQ",
        }
        assert client.post("/predict", json=body, headers=upgrade).status_code == 200
        assert client.get("/internal/snapshot").status_code == client.get("/metrics").status_code == 404
        assert client.get("/nothing").json()["error"]["code"] == "not_found"
        assert client.post("/predict", content=b"x" * (2 << 20)).status_code == 413


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("is_agent", [False, True])
def test_unit_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str], is_agent: bool) -> None:
    text = (DEPLOY / "muster.service").read_text()
    if is_agent:
        command = ["--data-dir", str(tmp_path), "add-worker", "--agent", "box", str(tmp_path / "box.key")]
        assert keys_cli.main(command) == 0
        text = capsys.readouterr().err.partition("muster-agent.service:")[2].strip() + "\n"
    [start] = re.findall(r"(?m)^ExecStart=(\S+) ", text)
    unit = tmp_path / "muster.service"
    unit.write_text(text.replace(start, "/bin/true").replace("/opt/muster/docs", str(ROOT / "docs")))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    own = [line for line in done.stderr.splitlines() if "muster.service" in line]
    assert own == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")
def test_scrape_configuration_is_valid() -> None:
    subprocess.run(["promtool", "check", "config", str(DEPLOY / "prometheus.yml")], capture_output=True, check=True)


def test_backup_of_a_running_server_is_restored(tmp_path: Path) -> None:
    job = {"path": "/predict", "body": {"prompt": "a seven", "seed": 7}}
    with running(tmp_path / "old", {"m": sim()}, 1) as server:
        made = [httpx.post(f"{server.base_url}/v1/jobs", json=job, timeout=PATIENCE_S).json()["id"] for _ in range(5)]
        url = f"{server.base_url}/v1/jobs/{made[0]}/result"
        wait_until(lambda: httpx.get(url, timeout=PATIENCE_S).status_code == 200, "a result")
        result = httpx.get(url, timeout=PATIENCE_S).content
        restored = jobs_file(tmp_path / "new")
        restored.parent.mkdir(parents=True)
        with (
            contextlib.closing(sqlite3.connect(jobs_file(server.data_dir))) as source,
            contextlib.closing(sqlite3.connect(restored)) as target,
        ):
            source.backup(target)
    with running(tmp_path / "new", {"m": sim()}, 1) as server:
        url = f"{server.base_url}/v1/jobs"
        assert httpx.get(f"{url}/{made[0]}/result", timeout=PATIENCE_S).content == result
        wait_until(
            lambda: all(httpx.get(f"{url}/{each}/result", timeout=PATIENCE_S).status_code == 200 for each in made),
            "all results",
        )
