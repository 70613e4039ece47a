"""Standby workers as real processes: how they wait, are activated, are adopted and exit, and the time they save."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from configs.paths import children_dir, controller_pid_file, standby_files
from configs.sections import Logging
from host.processes import Processes
from host.types import Exit, WorkerProcess
from scripts.harness.balancer import sim
from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S, ROOT, wait_until

#: Stands for a standby worker: reports that it is ready, and exits with status 7 when it is activated.
FAKE_STANDBY = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(7))
Path(sys.argv[2]).touch()
time.sleep(600)
"""


class Rig:
    """Launchers on one folder, one after the other, as controllers come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "logs").mkdir()
        self.launchers: list[Processes] = []
        #: Each poll reports an exit once, whoever asks for it.
        self.exits: list[Exit] = []
        self.next()

    def next(self) -> Processes:
        self.launchers.append(Processes(self.folder / "records", self.folder / "logs", Logging()))
        return self.launchers[-1]

    @property
    def now(self) -> Processes:
        return self.launchers[-1]

    def spawn(self, name: str = "s", program: str = FAKE_STANDBY) -> None:
        command = [sys.executable, "-c", program, name, str(standby_files(self.folder / "records", name).ready)]
        self.now.spawn(name, "m", "cuda", command, {}, spare=True)

    def child(self, name: str = "s") -> WorkerProcess | None:
        children, exits = self.now.poll()
        self.exits += exits
        return next((child for child in children if child.id == name), None)

    def loaded(self, name: str = "s") -> WorkerProcess:
        wait_until(lambda: (child := self.child(name)) is not None and child.loaded_at is not None, f"{name} is ready")
        child = self.child(name)
        assert child is not None
        return child

    def exit(self) -> Exit:
        def has_exited() -> bool:
            self.child()
            return bool(self.exits)

        wait_until(has_exited, "an exit")
        return self.exits.pop(0)

    def end(self) -> None:
        for launcher in self.launchers:
            for child in launcher.poll().children:
                launcher.signal(child.id, signal.SIGKILL)
            wait_until(lambda own=launcher: not own.poll().children, "the end of every child")  # type: ignore[misc]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.end()


def test_standby_worker_becomes_worker_when_activated(rig: Rig) -> None:
    rig.spawn()
    spare = rig.loaded()
    assert (spare.spare, spare.device, spare.model) == (True, "cuda", "m")
    rig.now.activate("s", "cuda:3")
    activated = rig.child()
    if activated is not None:  # it may have exited by the signal already
        assert (activated.spare, activated.device, activated.pid) == (False, "cuda:3", spare.pid)
        assert activated.started_at > spare.started_at, "its start is counted from here"
    ended = rig.exit()
    assert (ended.status, ended.process.spare, ended.process.device) == (7, False, "cuda:3")
    assert list((rig.folder / "records").iterdir()) == [], "nothing is left on disk"


def test_loading_standby_worker_is_activated_without_signal(rig: Rig) -> None:
    rig.spawn(program="import time; time.sleep(600)")
    rig.now.activate("s", "cuda:0")
    child = rig.child()
    assert child is not None, "SIGUSR2 ends a program that does not expect it"
    assert (child.spare, child.device) == (False, "cuda:0")
    assert standby_files(rig.folder / "records", "s").device.read_text() == "cuda:0"


OPERATIONS: dict[str, Callable[[Rig], object]] = {
    "start spare": lambda rig: rig.spawn(),
    "activate": lambda rig: rig.now.activate("s", "cuda:1"),
    "drain": lambda rig: rig.now.signal("s", signal.SIGTERM),
    "kill": lambda rig: rig.now.signal("s", signal.SIGKILL),
    "poll": lambda rig: rig.now.poll(),
}


@pytest.mark.parametrize(("first", "second", "third"), list(itertools.permutations(OPERATIONS, 3)))
def test_operations_are_safe_in_any_order(rig: Rig, first: str, second: str, third: str) -> None:
    pids = set()
    for operation in (first, second, third, third):
        OPERATIONS[operation](rig)
        children = rig.now.poll().children
        assert len(children) <= 1, "one process per name"
        pids |= {child.pid for child in children}
    rig.now.signal("s", signal.SIGKILL)
    wait_until(lambda: not rig.now.poll().children, "nothing of that name")
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert list((rig.folder / "records").iterdir()) == []


IGNORES_ACTIVATION = FAKE_STANDBY.replace("lambda *_: sys.exit(7)", "signal.SIG_IGN")


def test_next_launcher_adopts_standby_and_activated_workers(rig: Rig) -> None:
    rig.spawn("waiting", IGNORES_ACTIVATION)
    rig.spawn("activated", IGNORES_ACTIVATION)
    for name in ("waiting", "activated"):
        rig.loaded(name)
    record = (rig.folder / "records" / "activated.json").read_bytes()
    rig.now.activate("activated", "cuda:2")
    # As if its parent had ended between the activation file and the record.
    (rig.folder / "records" / "activated.json").write_bytes(record)
    before = rig.child("activated")
    assert before is not None
    adopted = {child.id: child for child in rig.next().adopt()}
    assert (adopted["waiting"].spare, adopted["waiting"].device) == (True, "cuda")
    assert (adopted["activated"].spare, adopted["activated"].device) == (False, "cuda:2")
    assert adopted["activated"].started_at == pytest.approx(before.started_at, abs=2.0)
    rig.loaded("waiting")


# ---- the worker's side


class StandbyWorker:
    """`python -m worker --standby`, by itself."""

    def __init__(self, folder: Path, **life: float) -> None:
        config = folder / "muster.yaml"
        config.write_text(yaml.safe_dump({"models": {"m": sim()}, "workers": {"heartbeat_s": 0.2} | life}))
        options = ["--config", str(config), "--data-dir", str(folder), "--id", "s", "--device", "sim", "--standby"]
        self.files = standby_files(children_dir(folder), "s")
        self.process = subprocess.Popen([sys.executable, "-m", "worker", *options], cwd=ROOT)

    def ready(self) -> None:
        wait_until(self.files.ready.exists, "the standby worker is ready")

    def end(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_standby_worker_exits_on_signal(tmp_path: Path, signum: signal.Signals) -> None:
    spare = StandbyWorker(tmp_path)
    try:
        spare.ready()
        spare.process.send_signal(signal.SIGUSR2)  # ignored without an activation file
        spare.process.send_signal(signum)
        assert spare.process.wait(PATIENCE_S) == 0
    finally:
        spare.end()


def test_standby_worker_without_controller_exits(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(PATIENCE_S)
    controller_pid_file(tmp_path).write_text(str(gone.pid))
    spare = StandbyWorker(tmp_path, orphan_after_s=1.0)
    try:
        assert spare.process.wait(PATIENCE_S) == 0
        assert spare.files.ready.exists(), "it had loaded"
    finally:
        spare.end()


def test_standby_worker_waits_until_its_ready_file_is_removed(tmp_path: Path) -> None:
    controller_pid_file(tmp_path).write_text(str(os.getpid()))
    spare = StandbyWorker(tmp_path, orphan_after_s=0.2)
    try:
        spare.ready()
        with pytest.raises(subprocess.TimeoutExpired):
            spare.process.wait(2.0)
        spare.files.ready.unlink()
        assert spare.process.wait(PATIENCE_S) == 0
    finally:
        spare.end()


# ---- all together

Start = Callable[..., Instance]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Instance] = []

    def one(*options: str, **config: Any) -> Instance:
        made.append(Instance(tmp_path / str(len(made)), config, *options))
        return made[-1]

    yield one
    for instance in made:
        instance.end()


def slow_to_load(**options: Any) -> dict[str, Any]:
    """Return a model whose weights take far longer to read than to move onto a device."""
    model = sim(t0_s=0.02, scaling={"interval_s": 3600, "max_workers": 1, "standby": 1}, **options)
    model["sim"] |= {"load_s": 1.0, "activate_s": 0.1}
    return model


def processes(instance: Instance, kind: str) -> list[psutil.Process]:
    """Return the instance's live processes of this kind: `worker` or `spare`."""
    return [process for process in instance.children() if f"muster {kind} " in " ".join(process.cmdline())]


def ready_spares(instance: Instance) -> list[str]:
    return [file.stem for file in (instance.folder / "run" / "children").glob("*.ready") if not order_of(file).exists()]


def order_of(ready: Path) -> Path:
    return ready.with_suffix(".order")


async def test_standby_worker_replaces_killed_worker(start: Start) -> None:
    instance = start(models={"m": slow_to_load()})
    await asyncio.to_thread(instance.until, lambda: bool(ready_spares(instance)), "a standby worker")
    [worker] = await asyncio.to_thread(instance.until_workers, 1)  # a standby worker does not count
    [spare], [waiting] = ready_spares(instance), processes(instance, "spare")
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:

        def has_arrived() -> bool:
            snapshot = instance.snapshot()
            return snapshot is not None and any(model.queued + model.running for model in snapshot.models)

        os.kill(worker.pid, signal.SIGSTOP)  # so that it has not answered before it is killed
        request = asyncio.create_task(client.post(f"{instance.url}/predict", json={"prompt": "a seven"}))
        await asyncio.to_thread(instance.until, has_arrived, "the request")
        os.kill(worker.pid, signal.SIGKILL)
        assert (await request).status_code == 200
    [successor] = await asyncio.to_thread(instance.until_workers, 1)
    assert (successor.worker, successor.pid, successor.device) == (spare, waiting.pid, worker.device)
    assert successor.start.standby
    assert successor.start.load_s == 0.0, "the weights were loaded before"
    assert successor.start.device_s >= 0.1
    metrics = httpx.get(f"{instance.url}/metrics", timeout=PATIENCE_S).text
    assert (
        f'muster_worker_start_seconds{{device="{worker.device}",model="m",part="device",worker="{spare}"}}' in metrics
    )
    await asyncio.to_thread(instance.until, lambda: bool(ready_spares(instance)), "the next standby worker")
    own = instance.children()
    instance.process.send_signal(signal.SIGTERM)
    assert instance.process.wait(PATIENCE_S) == 0
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in own)
    assert list((instance.folder / "run" / "children").iterdir()) == []


def test_restarted_controller_activates_adopted_standby(start: Start) -> None:
    instance = start(models={"m": slow_to_load()})
    instance.until_logged("Muster is ready at")
    instance.until(lambda: bool(ready_spares(instance)), "a standby worker")
    before = {process.pid for process in instance.children()}
    [spare] = ready_spares(instance)
    instance.process.kill()
    instance.process.wait()
    instance.start()
    instance.until(lambda: instance.output().count("Muster is ready at") == 2, "the second start")
    assert {process.pid for process in instance.children()} == before
    os.kill(instance.until_workers(1)[0].pid, signal.SIGKILL)
    instance.until(lambda: [worker.worker for worker in instance.workers()] == [spare], "the standby worker serves")


def test_dead_standby_worker_is_replaced(start: Start) -> None:
    instance = start(models={"m": slow_to_load()})
    instance.until(lambda: bool(ready_spares(instance)), "a standby worker")
    [worker], [spare], [waiting] = instance.until_workers(1), ready_spares(instance), processes(instance, "spare")
    waiting.kill()
    instance.until(lambda: ready_spares(instance) not in ([], [spare]), "another standby worker")
    assert [w.worker for w in instance.until_workers(1)] == [worker.worker]
    instance.until_logged(f"standby {spare} died (signal 9)")
    assert "crash" not in instance.output()


def test_standby_worker_that_dies_at_activation_is_replaced(start: Start) -> None:
    instance = start(models={"m": slow_to_load()})
    instance.until(lambda: bool(ready_spares(instance)), "a standby worker")
    [worker], [spare], [waiting] = instance.until_workers(1), ready_spares(instance), processes(instance, "spare")
    waiting.suspend()
    os.kill(worker.pid, signal.SIGKILL)
    instance.until(lambda: f"activating standby {spare}" in instance.output(), "the activation")
    waiting.kill()
    instance.until(lambda: [w.worker for w in instance.workers()] not in ([], [worker.worker], [spare]), "a successor")
    instance.until_logged(f"worker {spare} on {worker.device} died (signal 9)")
