"""A real balancer and real workers as child processes, for tests: started, waited for, and always ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from configs.paths import internal_token
from wire.snapshot import Snapshot

#: Generous: the machine may be busy with something else.
PATIENCE_S = 120.0
ROOT = Path(__file__).parents[2]

Process = subprocess.Popen[bytes]


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return as soon as the condition holds; fail the test if it never does."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain for: {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def sim(**options: Any) -> dict[str, Any]:
    """Configuration of a simulated model with small pictures; `t0_s` and `t1_s` say how slow it is."""
    times = {key: options.pop(key) for key in ("t0_s", "t1_s") if key in options}
    model = {
        "engine": "sim",
        "max_batch_size": 4,
        "defaults": {"size": "64x64", "steps": 8, "guidance_scale": 3.0, "scheduler": "ddim"},
        "limits": {"max_steps": 1000, "max_pixels": 65536, "min_side": 32, "max_guidance_scale": 20},
        "sim": {"t0_s": 0.002, "t1_s": 0.0005, "load_s": 0.0} | times,
    }
    return model | options


@dataclass
class Server:
    """A running balancer with its workers."""

    data_dir: Path
    config: Path
    port: int
    balancer: Process
    models: Mapping[str, Any]
    workers: dict[str, Process] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> dict[str, int]:
        return {"loadbalancer": self.balancer.pid} | {name: child.pid for name, child in self.workers.items()}

    def start_worker(self, model: str) -> str:
        """Start one more worker; returns its name without waiting for it."""
        name = f"{model}-{len(self.workers)}"
        device = "sim" if self.models[model].get("engine") == "sim" else "cpu"
        options = ["--id", name, "--model", model, "--device", f"{device}:{len(self.workers)}"]
        self.workers[name] = launch("worker", self.data_dir, "--config", str(self.config), *options, log=name)
        return name

    def snapshot(self) -> Snapshot:
        headers = {"authorization": f"Bearer {internal_token(self.data_dir)}"}
        content = httpx.get(f"{self.base_url}/internal/snapshot", headers=headers, timeout=PATIENCE_S).content
        return msgspec.json.decode(content, type=Snapshot)

    def ready_workers(self) -> list[str]:
        return [worker.worker for worker in self.snapshot().workers if worker.state == "ready" and worker.slots]

    def wait_for_workers(self, *names: str) -> None:
        def ready() -> bool:
            dead = [name for name in names if self.workers[name].poll() is not None]
            assert not dead, f"{dead} died before they were ready:\n{self.logs()}"
            return set(names) <= set(self.ready_workers())

        wait_until(ready, f"workers {names}")

    def log(self, name: str) -> str:
        """What the process has printed so far: `loadbalancer` or a worker's name."""
        return (self.data_dir / f"{name}.log").read_text()

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{self.log(name)}" for name in ("loadbalancer", *self.workers))

    def end(self) -> None:
        """End every process, the balancer last, so that no worker waits for it."""
        for child in [*self.workers.values(), self.balancer]:
            if child.poll() is None:
                child.kill()
            child.wait(PATIENCE_S)


def launch(program: str, data_dir: Path, *options: str, log: str) -> Process:
    """Start `python -m program`; what it prints goes to `log` in the data directory."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MUSTER_")}
    command = [sys.executable, "-m", program, "--data-dir", str(data_dir), *options]
    with (data_dir / f"{log}.log").open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )


@contextlib.contextmanager
def running(
    data_dir: Path,
    models: Mapping[str, Any],
    workers: Mapping[str, int] | int = 1,
    *,
    life: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """A balancer and its workers, all ready: `workers` of each model, or a number per model.

    `settings` are further sections of the configuration, such as `server={"max_n": 4}`; its `workers` is `life` here.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    config = data_dir / "config.yaml"
    tree = {"models": dict(models), "workers": dict(life or {}), **settings}
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    port = free_port()
    balancer = launch("loadbalancer", data_dir, "--config", str(config), "--port", str(port), log="loadbalancer")
    server = Server(data_dir, config, port, balancer, models)
    try:
        wait_until(lambda: _answers(server), "the balancer's first answer")
        counts = dict.fromkeys(models, workers) if isinstance(workers, int) else workers
        server.wait_for_workers(*[server.start_worker(model) for model in counts for _ in range(counts[model])])
        yield server
    finally:
        server.end()


def _answers(server: Server) -> bool:
    assert server.balancer.poll() is None, server.logs()
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.base_url}/healthz", timeout=PATIENCE_S).is_success
    return False


def stop(child: Process, signum: signal.Signals = signal.SIGTERM) -> int:
    """Send the signal and wait for the exit status."""
    child.send_signal(signum)
    return child.wait(PATIENCE_S)
