"""What every launcher promises: workers start, drain, end and are adopted in the same way wherever they run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from controller.launchers import Launcher
from scripts.harness.processes import is_alive, wait_until
from tests.support.launchers import SETUPS, WorkerRecord


@pytest.fixture(params=list(SETUPS), scope="module")
def workers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerRecord]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    with SETUPS[request.param](folder) as setup:
        record = WorkerRecord(setup)
        try:
            yield record
        finally:
            record.end_all()


def start(workers: WorkerRecord, name: str, model: str = "m") -> str:
    worker = workers.name(name)
    workers.launcher.start(worker, model, workers.device("sim:0"))
    return worker


def until_gone(pids: set[int]) -> None:
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "the end of its processes")


def test_started_worker_is_listed_with_what_it_is(workers: WorkerRecord) -> None:
    name = start(workers, "listed")
    child = workers.until(lambda found: name in found and found[name].pid > 0, "the worker")[name]
    assert (child.model, child.device, child.drained_at) == ("m", workers.device("sim:0"), None)
    assert not child.spare
    assert len(child.generation) == 8
    process = psutil.Process(child.pid)  # its arguments are not there until its program has been loaded
    wait_until(lambda: name in " ".join(process.cmdline()), "the worker's name among its arguments")


def test_second_start_of_a_name_changes_nothing(workers: WorkerRecord) -> None:
    name = start(workers, "once")
    first = workers.until(lambda found: name in found and found[name].pid > 0, "the worker")[name]
    start(workers, "once")
    for _ in range(3):
        assert workers.poll()[name].pid == first.pid


@pytest.mark.parametrize("immediate", [False, True])
def test_drained_worker_ends_once(workers: WorkerRecord, immediate: bool) -> None:
    name = start(workers, f"drained-{immediate}")
    child = workers.until(lambda found: name in found and found[name].pid > 0, "the worker")[name]
    workers.launcher.drain(name, immediate=immediate)
    workers.launcher.drain(name, immediate=immediate)
    ended = workers.exit_of(name)
    assert (ended.process.model, ended.process.device) == ("m", child.device)
    assert ended.process.drained_at is not None
    until_gone({child.pid})


def test_killed_worker_is_no_drained_worker(workers: WorkerRecord) -> None:
    name = start(workers, "killed")
    child = workers.until(lambda found: name in found and found[name].pid > 0, "the worker")[name]
    workers.launcher.kill(name)
    ended = workers.exit_of(name)
    assert ended.status in (-9, None)
    assert ended.process.drained_at is None
    until_gone({child.pid})


def test_worker_that_cannot_start_says_why(workers: WorkerRecord) -> None:
    ended = workers.exit_of(start(workers, "broken", "broken"))
    assert ended.status == 4
    assert "/does/not/exist" in ended.start_failure
    assert not ended.has_served


def test_standby_worker_is_activated_once(workers: WorkerRecord) -> None:
    if not workers.setup.has_standby:
        with pytest.raises(OSError, match="no standby workers"):
            workers.launcher.start(workers.name("standby"), "m", workers.device("sim"), standby=True)
        return
    name, device = workers.name("standby"), workers.device("sim:1")
    workers.launcher.start(name, "m", workers.device("sim"), standby=True)
    loaded = workers.until(lambda found: name in found and found[name].loaded_at is not None, "the standby worker")
    assert loaded[name].spare
    workers.launcher.activate(name, device)
    workers.launcher.activate(name, workers.device("sim:2"))
    active = workers.until(lambda found: name in found and not found[name].spare, "its activation")[name]
    assert (active.device, active.pid) == (device, loaded[name].pid)


@pytest.mark.parametrize(
    "call",
    [
        lambda launcher, name: launcher.drain(name),
        lambda launcher, name: launcher.drain(name, immediate=True),
        lambda launcher, name: launcher.kill(name),
        lambda launcher, name: launcher.activate(name, "sim:0"),
    ],
)
def test_unknown_worker_changes_nothing(workers: WorkerRecord, call: object) -> None:
    assert callable(call)
    before = workers.poll().keys()
    launcher: Launcher = workers.launcher
    call(launcher, workers.name("unknown"))
    assert workers.poll().keys() == before
    assert not [ended for ended in workers.exits if ended.process.id == workers.name("unknown")]


def test_next_controller_adopts_what_runs(workers: WorkerRecord) -> None:
    name = start(workers, "adopted")
    before = workers.until(lambda found: name in found and found[name].pid > 0, "the worker")[name]
    workers.setup.restart()
    after = workers.until(lambda found: name in found, "its adoption")[name]
    assert (after.pid, after.model, after.device, after.generation) == (
        before.pid,
        before.model,
        before.device,
        before.generation,
    )
    workers.launcher.kill(name)
    assert workers.exit_of(name).process.pid == before.pid
    until_gone({before.pid})
