"""The real scheduler service in the test's process, with real worker processes on the simulated accelerator."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from configs.load import load
from configs.paths import worker_address
from configs.settings import Settings
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import TaskCompleted, TaskEnded, TaskProgress, TaskUpdate
from scripts.harness.balancer import PATIENT
from scripts.harness.processes import PATIENCE_S
from tests.support.waiting import until
from wire.inputs import ImageInputs
from wire.snapshot import WorkerStats
from worker.engines.sim import expected_image

CONFIG: dict[str, Any] = {
    "queue": {"deadline_slack": None},
    "workers": {"heartbeat_s": 0.2} | PATIENT,
    "models": {
        "m": {
            "engine": "sim",
            "max_batch_size": 4,
            "defaults": {"size": "64x64"},
            "sim": {"t0_s": 0.01, "t1_s": 0.002, "load_s": 0.1},
        }
    },
}


def inputs(seed: int = 0, steps: int = 20, prompt: str = "a seven", **changes: object) -> ImageInputs:
    image = ImageInputs(prompt, 64, 64, steps, guidance_scale=3.0, seed=seed, scheduler="ddim")
    return msgspec.structs.replace(image, **changes)


class InProcessService:
    """A scheduler service in this process, and workers in their own processes."""

    def __init__(self, folder: Path, sections: Mapping[str, Any] | None = None, **changes: Any) -> None:
        """`changes` are settings of the model. Those of `sim`, and the other `sections`, are merged with `CONFIG`."""
        base = CONFIG["models"]["m"]
        model = base | changes | {"sim": base["sim"] | changes.get("sim", {})}
        self.config = folder / "muster.yaml"
        others = {name: CONFIG.get(name, {}) | values for name, values in (sections or {}).items()}
        self.config.write_text(yaml.safe_dump(CONFIG | others | {"models": {"m": model}}))
        self.settings: Settings = load(self.config, {"data_dir": str(folder)})
        self.scheduler = SchedulerService(self.settings, worker_address(self.settings.data_dir))
        self.processes: list[subprocess.Popen[bytes]] = []
        #: Completed tasks of all requests, in order: also where this process waits and many are reported at once.
        self.completed: list[str] = []

    def spawn(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "worker", "--config", str(self.config), "--id", name, "--device", "sim:0"]
        process = subprocess.Popen([*command, "--data-dir", str(self.settings.data_dir)])
        self.processes.append(process)
        return process

    async def wait_until(self, condition: Callable[[], object]) -> None:
        await until(condition)

    def worker(self, name: str) -> WorkerStats | None:
        return next((w for w in self.scheduler.snapshot().workers if w.worker == name and w.slots), None)

    async def start(self, *names: str) -> None:
        for name in names:
            self.spawn(name)
        await self.wait_until(lambda: all(self.worker(name) for name in names))

    def submit(
        self,
        inputs: Sequence[ImageInputs],
        timeout_s: float = PATIENCE_S,
        sources: Sequence[bytes] = (),
        **options: Any,
    ) -> SubmittedRequest:
        """`options` are those of `SchedulerService.submit`: `priority`, `owner`, `weight`, `resume`."""
        return SubmittedRequest(self.scheduler, inputs, timeout_s, sources, self.completed, **options)


class SubmittedRequest:
    """A submitted request and the updates of its tasks."""

    def __init__(
        self,
        scheduler: SchedulerService,
        inputs: Sequence[ImageInputs],
        timeout_s: float,
        sources: Sequence[bytes],
        completed: list[str],
        **options: Any,
    ) -> None:
        """`completed` takes in the names of the tasks, when they are."""
        self.inputs = inputs
        self.sources = sources
        self.updates: list[TaskUpdate] = []
        self._completed = completed
        self._changed = asyncio.Event()
        options = {"priority": 0, **options}
        self.tasks = scheduler.submit(
            "m", inputs, timeout_s=timeout_s, listener=self._on_update, sources=sources, **options
        )

    def _on_update(self, update: TaskUpdate) -> None:
        self.updates.append(update)
        if isinstance(update, TaskCompleted):
            self._completed.append(update.task)
        self._changed.set()

    async def outcomes(self) -> list[TaskCompleted | TaskEnded]:
        """The final update of each task, in order; every task has exactly one."""
        async with asyncio.timeout(PATIENCE_S):
            while len(last := [u for u in self.updates if isinstance(u, TaskCompleted | TaskEnded)]) < len(self.tasks):
                self._changed.clear()
                await self._changed.wait()
        assert sorted(u.task for u in last) == sorted(self.tasks)
        return sorted(last, key=lambda u: self.tasks.index(u.task))

    def completed(self) -> int:
        return sum(isinstance(update, TaskCompleted) for update in self.updates)

    async def check_images(self) -> None:
        for image, end in zip(self.inputs, await self.outcomes(), strict=True):
            assert isinstance(end, TaskCompleted), end
            assert bytes(end.image) == expected_image(image, self.sources)

    async def progress(self, steps: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not any(isinstance(u, TaskProgress) and u.step >= steps for u in self.updates):
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def in_process_service(
    folder: Path, sections: Mapping[str, Any] | None = None, **changes: Any
) -> AsyncIterator[InProcessService]:
    """A service whose processes end with the block."""
    service = InProcessService(folder, sections, **changes)
    await service.scheduler.start()
    try:
        yield service
    finally:
        for process in service.processes:
            process.kill()
            process.wait()
        await service.scheduler.stop()
