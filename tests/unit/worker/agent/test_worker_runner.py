"""Orders on a machine: nothing in them leaves the data directory or the command line of a worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.paths import standby_files
from configs.settings import Settings
from scripts.harness.processes import wait_until
from wire.agents import ActivateWorker, DrainAll, KillWorker, ModelSettings, Order, StartWorker
from wire.curve import WorkerKey, new_pair
from worker.agent.worker_runner import WorkerRunner

RECEIVED = ModelSettings(
    "digest", '{"orphan_after_s": 5}', {"m": json.dumps({"engine": "sim"}), "no": json.dumps({"path": "/srv/no"})}
)


def make(folder: Path) -> WorkerRunner:
    settings = Settings.model_validate({"data_dir": str(folder / "data"), "models": {"x": {"engine": "sim"}}})
    pair = new_pair()
    return WorkerRunner(settings, "tcp://127.0.0.1:9", WorkerKey(pair.public, pair.secret, new_pair().public))


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[WorkerRunner]:
    made = make(tmp_path)
    made.update_settings(RECEIVED)
    yield made
    made.kill_all()
    wait_until(lambda: made.poll() is not None and not made.processes(), "the end of all workers")


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    "order",
    [
        StartWorker("../../w", "m", "sim:0", "g"),
        StartWorker("a/b", "m", "sim:0", "g"),
        StartWorker("--help", "m", "sim:0", "g"),
        StartWorker("", "m", "sim:0", "g"),
        StartWorker("w\n", "m", "sim:0", "g"),
        StartWorker("w", "m", "--agent", "g"),
        StartWorker("w", "m", "../sim:0", "g"),
        StartWorker("w", "m", "other/sim:0", "g"),
        ActivateWorker("w", "sim:0\n"),
        KillWorker("/etc/passwd"),
    ],
)
def test_order_with_an_invalid_name_changes_nothing(runner: WorkerRunner, tmp_path: Path, order: Order) -> None:
    before = files(tmp_path)
    runner.execute(order)
    assert not runner.processes()
    assert not runner.exits()
    assert files(tmp_path) == before


@pytest.mark.parametrize(("model", "reason"), [("no", "/srv/no on the server"), ("other", "is not among the settings")])
def test_start_that_is_impossible_is_an_exit_with_its_reason(runner: WorkerRunner, model: str, reason: str) -> None:
    runner.execute(StartWorker("box:w", model, "sim:0", "g"))
    [ended] = runner.exits()
    assert (ended.status, ended.process.generation) == (4, "g")
    assert reason in ended.start_failure
    runner.acknowledge_exits(ended.number)
    assert not runner.exits()


def test_what_the_disk_does_not_take_is_tried_again(runner: WorkerRunner, tmp_path: Path) -> None:
    """The agent and its workers go on."""
    runner.execute(StartWorker("box:w", "m", "sim:0", "g", standby=True))
    run = tmp_path / "data/run"
    broken = [run / "config.yaml", *standby_files(run / "children", "box:w")[1:]]
    for file in broken:
        file.unlink(missing_ok=True)
        file.mkdir()  # no file can take its place
    runner.execute(ActivateWorker("box:w", "sim:1"))
    assert [child.standby for child in runner.processes()] == [True]
    assert not runner.look_again()
    for file in broken:
        file.rmdir()
    runner.execute(ActivateWorker("box:w", "sim:1"))
    assert [child.device for child in runner.processes()] == ["sim:1"]
    assert runner.look_again()


def test_next_agent_adopts_and_reports_what_ended_before(runner: WorkerRunner, tmp_path: Path) -> None:
    for name in ("box:stays", "box:ends"):
        runner.execute(StartWorker(name, "m", "sim:0", "g"))
    later = make(tmp_path)
    assert later.digest == "digest", "the settings are on disk"
    runner.execute(KillWorker("box:ends"))
    wait_until(lambda: runner.poll() or bool(runner.exits()), "its end")
    (tmp_path / "data/run/children/box:ends.json").write_bytes(
        (tmp_path / "data/run/children/box:stays.json").read_bytes().replace(b"box:stays", b"box:ends")
    )
    assert [child.id for child in later.adopt()] == ["box:stays"]
    later.poll()
    [ended] = later.exits()
    assert (ended.process.worker, ended.machine_failed) == ("box:ends", True)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_stop_of_the_server_drains_all_unless_it_returns(runner: WorkerRunner, is_cancelled: bool) -> None:
    runner.execute(StartWorker("box:w", "m", "sim:0", "g"))
    runner.execute(DrainAll(0.0))
    if is_cancelled:
        runner.on_new_controller()
    runner.poll()
    assert (runner.processes() == [] or runner.processes()[0].drained_s is not None) is not is_cancelled
