"""The server under attack: a controller with a balancer, workers, and two API keys."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from configs.paths import log_dir, worker_address
from controller.launchers.local import BALANCER
from scripts.attack_lib.probe import rss_bytes
from scripts.harness.balancer import sim
from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S, ROOT, wait_until

#: Short limits of time, so that attacks on them take seconds.
SERVER = {"header_timeout_s": 2, "body_timeout_s": 2, "keep_alive_s": 5, "send_timeout_s": 3, "max_connections": 400}
JOBS = {"max_unfinished": 20, "webhook_private": True, "webhook_timeout_s": 2, "webhook_retry_s": 60}
RESULTS = {"max_bytes": 1 << 20}
TIME_LIMIT_S = 30.0


class Target:
    """`alice` attacks, `bob` must be served."""

    def __init__(self, folder: Path, *, stall_factor: float = 1.0) -> None:
        self.stall_factor = stall_factor
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.alice, self.bob = self._add_key("alice"), self._add_key("bob")
        model = sim(t0_s=0.005, scaling={"min_workers": 2, "max_workers": 2})
        calls = {"task": "call", "t0_s": 0.005, "load_s": 0.0}
        echo = {"engine": "sim", "max_batch_size": 8, "sim": calls, "scaling": {"min_workers": 1, "max_workers": 1}}
        config: dict[str, Any] = {
            "models": {"m": model, "echo": echo},
            "server": SERVER,
            "jobs": JOBS,
            "results": RESULTS,
        }
        self.instance = Instance(folder, config)
        self.instance.until(self.instance.is_ready, "a ready server")
        self.instance.until_workers(3)

    def _add_key(self, name: str) -> str:
        command = [sys.executable, "-m", "loadbalancer.access.keys_cli", "--data-dir", str(self.folder), "add", name]
        command += ["--scope", "images", "--scope", "calls", "--scope", "jobs"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        return done.stdout.split()[-1]

    @property
    def port(self) -> int:
        return self.instance.port

    @property
    def balancer_pid(self) -> int | None:
        """None while there is no balancer."""
        record = self.instance.records().get(BALANCER)
        return None if record is None else record.pid

    def rss_bytes(self) -> int:
        """Memory of the balancer."""
        return rss_bytes(self.balancer_pid)

    @property
    def worker_address(self) -> str:
        return worker_address(self.folder.resolve())

    def log_bytes(self) -> int:
        return sum(file.stat().st_size for file in log_dir(self.folder).glob("*") if file.is_file())

    @contextlib.contextmanager
    def client(self, key: str | None) -> Iterator[httpx.Client]:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=self.instance.url, headers=headers, timeout=TIME_LIMIT_S) as client:
            yield client

    def warm_up(self) -> None:
        """Do everything once that costs memory at its first use."""
        from scripts.attack_lib.pictures import honest_png

        with self.client(self.bob) as bob:
            for _ in range(4):
                assert bob.post("/predict", json={"prompt": "a"}).status_code == 200
                edit = bob.post("/v1/images/edits", files={"image": honest_png()}, data={"prompt": "a"})
                assert edit.status_code == 200, edit.text
            job = bob.post("/v1/jobs", json={"path": "/predict", "body": {"prompt": "a"}})
            assert job.status_code == 202, job.text
            wait_until(lambda: bob.get(f"/v1/jobs/{job.json()['id']}/result").status_code == 200, "a result")
            call = bob.post("/v1/models/echo:predict", files={"a": b"a"})
            assert call.status_code == 200, call.text
            assert bob.get("/openapi.json").status_code == 200

    def is_served(self) -> bool:
        """Return whether an honest request of bob succeeds."""
        with contextlib.suppress(httpx.TransportError), self.client(self.bob) as bob:
            return bob.post("/predict", json={"prompt": "a"}).status_code == 200
        return False

    def end(self) -> None:
        self.instance.end()
