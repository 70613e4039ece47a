"""What the autoscaler records of workers that end, and of the settings and swaps around them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler
from controller.autoscaler.model_state import ModelState
from controller.planning.device_pool import DevicePool
from controller.planning.machines import Machine
from controller.policies import static
from controller.types import CrashBackoff, Decision, Device, Kill, Observation, Queue, Replica, Stage, WorkerLimits
from host.types import Exit, WorkerProcess

NOW = 1000.0
LIMITS = WorkerLimits(0, 4, 60, 30, 10)
BOX = Machine("box", [Device("box/cuda:0"), Device("box/cuda:1")], frozenset({"m"}), NOW)
SLOTS = ["cuda:0", "cuda:1", "box/cuda:0", "box/cuda:1"]


def model_state(workers: int = 1, name: str = "m") -> ModelState:
    scaling = Scaling(policy="static", min_workers=0, initial_workers=workers)
    return ModelState(scaling, LIMITS, static.decide, SLOTS, Decision(workers, name))


def process(name: str, device: str = "cuda:0", model: str = "m", ready_at: float | None = NOW - 100) -> WorkerProcess:
    return WorkerProcess(name, model, device, 1, NOW - 200, ready_at=ready_at)


def seen(*workers: WorkerProcess, model: str = "m") -> Observation:
    replicas = [Replica(each, Stage.STARTING if each.ready_at is None else Stage.READY) for each in workers]
    return Observation(model, Queue(0, 0, uptime_s=900.0), replicas)


@pytest.mark.parametrize(
    ("status", "ready_at", "kind"),
    [
        (-9, NOW - 100, "killed"),
        (-11, NOW - 100, "signal"),
        (1, NOW - 100, "exit_status"),
        (None, NOW - 100, "unknown"),
        (1, None, "start_failed"),
        (0, NOW - 100, None),
    ],
)
def test_crashes_are_counted_by_kind(status: int | None, ready_at: float | None, kind: str | None) -> None:
    autoscaler = Autoscaler({"m": model_state()})
    assert autoscaler.on_exit(Exit(process("w", ready_at=ready_at), NOW, status)) is (kind is not None)
    counts = autoscaler.models["m"].crashes_by_kind
    assert {name: count for name, count in counts.items() if count} == ({kind: 1} if kind else {})


@pytest.mark.parametrize(
    "replica",
    [
        Replica(process("w"), Stage.READY, stuck=True),
        Replica(process("w"), Stage.READY, silent_since=NOW - 100),
    ],
    ids=["sends heartbeats only", "sends nothing"],
)
def test_worker_that_a_plan_has_killed_counts_as_unresponsive(replica: Replica) -> None:
    """Not as one that the kernel killed because main memory is short."""
    autoscaler = Autoscaler({"m": model_state()})
    plan = autoscaler.tick({"m": replace(seen(), replicas=[replica])}, NOW).plan
    assert Kill("w", plan.actions[0].reason) in plan.actions
    assert autoscaler.on_exit(Exit(replica.process, NOW + 1, -9))
    assert autoscaler.models["m"].crashes_by_kind["unresponsive"] == 1
    assert autoscaler.models["m"].crashes_by_kind["killed"] == 0


def test_device_of_repeated_crashes_is_avoided() -> None:
    autoscaler = Autoscaler({"m": model_state(2)}, DevicePool([Device("cuda:0"), Device("cuda:1")]))
    for number in range(3):
        autoscaler.on_exit(Exit(process(f"w{number}"), NOW + number, -9))
    planned = autoscaler.tick({"m": seen(process("other", "cuda:1"))}, NOW + 10).plan
    assert "crashes in a row" in planned.devices["cuda:0"].fault


def test_end_of_a_worker_with_its_machine_is_no_crash() -> None:
    autoscaler = Autoscaler({"m": model_state(2)})
    lost, stays = process("lost", "box/cuda:0"), process("stays")
    autoscaler.tick({"m": seen(lost, stays)}, NOW, [BOX])
    observed = autoscaler.tick({"m": seen(lost, stays)}, NOW + 1, [replace(BOX, silent=True)]).demands[0].observation
    assert (observed.provisioned, observed.owed) == (2, 1), "it counts as lost while its machine is silent"
    assert not autoscaler.on_exit(Exit(lost, NOW + 2, None))
    assert autoscaler.models["m"].crashes == CrashBackoff()
    assert autoscaler.models["m"].lost == 1, "and once only"


def test_start_time_is_that_of_the_machine_that_comes_next() -> None:
    autoscaler = Autoscaler({"m": model_state(2)})
    autoscaler.models["m"].slots = ["cuda:0", "box/cuda:0", "box/cuda:1"]
    here, there = process("a"), process("b", "box/cuda:0")
    replicas = [
        Replica(here, Stage.READY, started_in_s=90.0),
        Replica(there, Stage.READY, started_in_s=20.0),
    ]
    observation = replace(seen(), replicas=replicas)
    expected = [autoscaler.tick({"m": observation}, now, [BOX]).demands[0].observation for now in (NOW, NOW + 1)]
    assert [each.cold_start_s for each in expected] == [90.0, 20.0], "the next one starts on box, as is known by then"


def test_start_of_each_worker_is_recorded_once_and_forgotten_with_it() -> None:
    model = model_state()
    replicas = [Replica(process("a"), Stage.READY, started_in_s=20.0)]
    for now in (NOW, NOW + 1):
        model.observe(Observation("m", None, replicas), now)
    assert model.starts.cold == (20.0,)
    model.observe(Observation("m", None, []), NOW + 2)
    assert model.recorded_starts == frozenset()


def test_swap_counts_once() -> None:
    wanted, rich = model_state(1, "wanted"), model_state(2, "rich")
    wanted.slots = rich.slots = ["cuda:0", "cuda:1"]
    wanted.limits = replace(LIMITS, min_workers=1)
    autoscaler = Autoscaler({"n": wanted, "m": rich})
    observations = {"n": seen(model="n"), "m": seen(process("a"), process("b", "cuda:1"))}
    for now in (NOW, NOW + 1, NOW + 2):
        assert autoscaler.tick(observations, now).plan.swaps, "it is planned until the worker drains"
    assert autoscaler.swaps == 1


@pytest.mark.parametrize(("least", "most", "desired"), [(0, 4, 3), (0, 2, 2), (4, 4, 4)])
def test_new_settings_bound_the_number_and_forget_crashes(least: int, most: int, desired: int) -> None:
    model, fresh = model_state(3), model_state(3)
    model.crashes = model.standby_crashes = CrashBackoff(5, NOW + 60, NOW)
    model.decided_at = NOW
    fresh.limits = replace(LIMITS, min_workers=least, max_workers=most)
    model.update_settings(fresh)
    assert model.decision.desired == desired
    assert (model.crashes, model.standby_crashes) == (CrashBackoff(), CrashBackoff())
    assert model.next_decision_at < 0, "it decides again"
