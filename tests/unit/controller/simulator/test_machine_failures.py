"""Failures of machines and switches in the simulation, with and without a planner that knows of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.scaling import Scaling
from controller.simulator.cli import agent_for
from controller.simulator.cluster import SimCluster
from controller.simulator.hardware import InvalidHardware, read_hardware
from controller.simulator.machines import MachineFailure, SimMachine, SimSwitch, failures_of
from controller.simulator.model_sim import ModelSim, WorkerProfile
from controller.simulator.results import model_results
from controller.simulator.scenarios import Scenario, Traffic

MACHINES = [SimMachine(name, 2) for name in "ab"]
OF_A, OF_B = (frozenset(machine.slots) for machine in MACHINES)


def cut(at: float, until: float, slots: frozenset[str] = OF_A, name: str = "a") -> MachineFailure:
    return MachineFailure(at, until, slots, frozenset({name}), is_cut=True)


def cluster_of(work: list[float], failures: Sequence[MachineFailure]) -> tuple[SimCluster, ModelSim]:
    model = ModelSim(WorkerProfile("m", cold_starts_s=(20.0,)), [0.0] * len(work), work)
    return SimCluster({"m": model}, failures=failures, machines=MACHINES), model


def finish(cluster: SimCluster, model: ModelSim) -> None:
    while model.tail < len(model.times):
        cluster.arrive(model)
    while cluster.next_at < float("inf"):
        cluster.step()


def test_tasks_of_a_cut_machine_go_on_elsewhere() -> None:
    cluster, model = cluster_of([40.0], [cut(30.0, 90.0)])
    cluster.start("m", "a/cuda:0", 0.0, ready=True)
    cluster.start("m", "b/cuda:0", 25.0, ready=True)
    finish(cluster, model)
    # Of 30 s on the first worker, 11 s are lost.
    assert model.ends == [30.0 + 10.0 + 11.0]
    assert model.repeated_s == 11.0
    assert model.ready == 2, "both serve after the repair"
    assert not cluster.take_exits()


def test_worker_behind_a_failed_switch_serves_afterwards() -> None:
    cluster, model = cluster_of([40.0], [cut(30.0, 90.0)])
    cluster.start("m", "a/cuda:0", 0.0, ready=True)
    finish(cluster, model)
    assert model.ends == [90.0 + 10.0 + 11.0]


def test_worker_that_loads_in_a_failure_is_ready_after_it() -> None:
    cluster, model = cluster_of([1.0], [cut(10.0, 90.0)])
    cluster.start("m", "a/cuda:0", 0.0)
    finish(cluster, model)
    assert model.ends == [91.0]


def test_machine_is_silent_until_its_repair() -> None:
    cluster, _ = cluster_of([], [cut(30.0, 90.0), cut(60.0, 80.0), MachineFailure(70.0, 95.0, OF_B, frozenset("b"))])
    for at, silent in ((30.0, {"a"}), (60.0, {"a"}), (70.0, {"a", "b"})):
        cluster.step()
        assert {machine.name for machine in cluster.machines.at(at) if machine.silent} == silent
        assert cluster.has_exits, "the controller looks at once"
        cluster.take_exits()
    assert {machine.name for machine in cluster.machines.at(90.0) if machine.silent} == {"b"}


@given(
    starts=st.lists(st.tuples(st.floats(0, 60), st.sampled_from([*OF_A, *OF_B])), max_size=6),
    failures=st.lists(st.tuples(st.floats(0, 100), st.floats(1, 60), st.booleans(), st.booleans()), max_size=5),
    drains=st.lists(st.integers(1, 6), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_counters_hold_in_any_failure(
    starts: list[tuple[float, str]], failures: list[tuple[float, float, bool, bool]], drains: list[int]
) -> None:
    made = [
        MachineFailure(at, at + length, OF_B if second else OF_A, frozenset("b" if second else "a"), is_cut)
        for at, length, second, is_cut in sorted(failures)
    ]
    cluster, model = cluster_of([7.0] * 12, made)
    for at, slot in sorted(starts):
        while cluster.next_at <= at:
            cluster.step()
        cluster.start("m", slot, at)
    for number in drains:
        cluster.drain(f"m-{number}", max(60.0, cluster.next_at if cluster.next_at < 1e6 else 60.0))
    finish(cluster, model)
    ready = [worker for worker in cluster.workers.values() if worker.process.ready_at is not None]
    assert model.ready == len(ready)
    assert model.starting == len(cluster.workers) - len(ready) == 0
    assert model.queued + model.running + model.done == len(model.times)
    assert model.done == len(model.times) or not ready
    assert model.remaining_s == pytest.approx(0.0, abs=1e-6) or not ready


def scenario(switches: Sequence[SimSwitch]) -> Scenario:
    times = [2.0 * number for number in range(900)]
    scaling = Scaling(policy="static", min_workers=2, max_workers=4)
    machines = [SimMachine(name, 2) for name in "abc"]
    profile = WorkerProfile("m", cold_starts_s=(20.0,))
    return Scenario(
        {"m": Traffic(times, [2.0] * 900)},
        {"m": profile},
        {"m": scaling},
        6,
        1800.0,
        machines=machines,
        switches=switches,
    )


def test_planner_replaces_workers_on_machines_that_answer() -> None:
    given_ = scenario([SimSwitch("rack", ("a",), mean_life_s=500.0, repair_s=200.0)])
    failures = given_.failures()
    assert failures
    agent, targets = agent_for("static", given_)
    result = given_.run(agent, targets)
    (row,) = model_results("static", result)
    assert row.unserved == 0
    # The first two workers are on the machine that fails; two others start at once.
    assert row.cold_starts >= 2
    assert row.wait_p99_s < 40.0
    history = result.models["m"].history
    assert max(ready for _, _, ready in history) == 4, "all have served when the machine was back"
    assert history[-1][1:] == (0, 2), "then the surplus ones leave"


def test_failures_of_switches_are_random_but_repeatable() -> None:
    machines = [SimMachine(name, 1, mean_life_s=1000.0) for name in "abc"]
    switches = [SimSwitch("rack", ("a", "b"), mean_life_s=500.0, repair_s=60.0)]
    failures = failures_of(machines, 50_000.0, 3, switches)
    assert failures == failures_of(machines, 50_000.0, 3, switches)
    own = [failure for failure in failures if failure.is_cut]
    assert len(own) == pytest.approx(50_000 / 560, rel=0.3)
    assert {failure.slots for failure in own} == {frozenset({"a/cuda:0", "b/cuda:0"})}
    assert [failure for failure in failures if not failure.is_cut] == failures_of(machines, 50_000.0, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("machines: {a: {gpus: 1}}\nswitches: {r: {machines: [b]}}", "there is no machine 'b'"),
        ("machines: {a: {gpus: 1}}\nswitches: {r: {machines: []}}", "switches.r.machines"),
        ("machines: {a: {gpus: 1}}\nswitches: {r: {machines: [a], repair_s: 0}}", "switches.r.repair_s"),
    ],
)
def test_invalid_switches_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "hardware.yaml"
    file.write_text(text)
    with pytest.raises(InvalidHardware, match=says):
        read_hardware(file)
