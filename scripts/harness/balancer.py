"""A balancer with its workers, without a controller."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from configs.paths import internal_token
from scripts.harness.processes import PATIENCE_S, Process, free_port, launch, wait_until
from wire.snapshot import Snapshot

#: No process counts as lost, nor leaves, because a busy machine lets another one wait.
PATIENT = {"lost_after_s": 120, "orphan_after_s": 300}


def sim(**options: Any) -> dict[str, Any]:
    """Return the configuration of a simulated model with small images and steps of `t0_s + t1_s * batch` seconds."""
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
    """A balancer and its workers."""

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

    def is_up(self) -> bool:
        assert self.balancer.poll() is None, self.logs()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.base_url}/healthz", timeout=PATIENCE_S).is_success
        return False

    def start_worker(self, model: str) -> str:
        """Start one more worker and return its name, without waiting for it."""
        name = f"{model.replace('/', '-')}-{len(self.workers)}"
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

    @contextlib.contextmanager
    def stopped(self, *names: str) -> Iterator[None]:
        """Stop these workers, or all, within the block: their tasks wait, however fast they are."""
        stopped = [self.workers[name] for name in names or self.workers]
        for worker in stopped:
            worker.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for worker in stopped:
                worker.send_signal(signal.SIGCONT)

    def log(self, name: str) -> str:
        """Return the output of `loadbalancer` or of a worker."""
        return (self.data_dir / f"{name}.log").read_text()

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{self.log(name)}" for name in ("loadbalancer", *self.workers))

    def end(self) -> None:
        """Kill every process, the balancer last, so that no worker waits for it."""
        for child in [*self.workers.values(), self.balancer]:
            if child.poll() is None:
                child.kill()
            child.wait(PATIENCE_S)


@contextlib.contextmanager
def running(
    data_dir: Path,
    models: Mapping[str, Any],
    workers: Mapping[str, int] | int = 1,
    *,
    life: Mapping[str, Any] | None = None,
    program: str = "loadbalancer",
    **settings: Any,
) -> Iterator[Server]:
    """Start a balancer with ready workers: a number of each model, or one number for every model.

    `settings` are further sections of the configuration, such as `server={"max_n": 4}`;
    `life` is the section `workers`, merged with `PATIENT`; `program` the module that is the balancer.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    config = data_dir / "config.yaml"
    tree = {"models": dict(models), "workers": PATIENT | dict(life or {}), **settings}
    config.write_text(yaml.safe_dump(tree, sort_keys=False))
    port = free_port()
    balancer = launch(program, data_dir, "--config", str(config), "--port", str(port), log="loadbalancer")
    server = Server(data_dir, config, port, balancer, models)
    try:
        wait_until(server.is_up, "the balancer's first answer")
        counts = dict.fromkeys(models, workers) if isinstance(workers, int) else workers
        server.wait_for_workers(*[server.start_worker(model) for model in counts for _ in range(counts[model])])
        yield server
    finally:
        server.end()
