"""Where workers and standby workers go, and which leave, on several machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from controller.planning.machines import Machine, preferred_machines
from controller.planning.placement import DeviceSlots, PlacementRequest
from controller.planning.plan import ModelDemand, Plan, make_plan
from controller.planning.scale_down import select_to_stop
from controller.planning.standby import StandbyTarget, with_standby
from controller.types import (
    Activate,
    CrashBackoff,
    Decision,
    Device,
    Drain,
    Observation,
    Replica,
    Stage,
    Start,
    WorkerLimits,
)
from host.types import WorkerProcess

GIB = 2**30
NOW = 1000.0
LIMITS = WorkerLimits(0, 16, 60, 30, 10)
A, B = frozenset({"a"}), frozenset({"b"})


def worker(name: str, device: str, *, stage: Stage = Stage.READY, load: int = 0, age_s: float = 100.0) -> Replica:
    child = WorkerProcess(name, "m", device, 1, NOW - age_s, ready_at=None if stage is Stage.STARTING else NOW - 50)
    return Replica(child, stage, load)


def spare(name: str, device: str) -> WorkerProcess:
    return WorkerProcess(name, "m", device, 1, NOW - 100, spare=True, loaded_at=NOW - 50)


def take(
    memory: Mapping[str, int | None], *, preferred: tuple[frozenset[str], ...] = (), count: int = 1, has: str = ""
) -> list[str | None]:
    slots = DeviceSlots({name: Device(name, size and size * GIB) for name, size in memory.items()})
    request = PlacementRequest("m", 10 * GIB, dict.fromkeys(memory, 1), preferred=preferred)
    if has:
        slots.hold(has, request)
    return [slots.take(request) for _ in range(count)]


@pytest.mark.parametrize(
    ("memory", "preferred", "has", "taken"),
    [
        # The weights are at hand on one machine.
        ({"a/cuda:0": 24, "b/cuda:0": 24}, (B,), "", ["b/cuda:0", "a/cuda:0"]),
        # A standby worker counts more than the weights.
        ({"a/cuda:0": 24, "b/cuda:0": 24, "cuda:0": 24}, (B, A), "", ["b/cuda:0", "a/cuda:0", "cuda:0"]),
        # A machine without the weights is better than none.
        ({"a/cuda:0": 24}, (B,), "", ["a/cuda:0"]),
        # The weights count more than the size.
        ({"a/cuda:0": 24, "b/cuda:0": 80}, (B,), "", ["b/cuda:0"]),
        # The second worker goes to another machine, the third to the next device.
        ({"a/cuda:0": 24, "a/cuda:1": 24, "b/cuda:0": 24}, (), "", ["a/cuda:0", "b/cuda:0", "a/cuda:1"]),
        ({"cuda:0": 24, "cuda:1": 24, "b/cuda:0": 24}, (), "", ["cuda:0", "b/cuda:0", "cuda:1"]),
        ({"a/cuda:0": 24, "a/cuda:1": 24, "b/cuda:0": 24}, (), "b/cuda:0", ["a/cuda:0", "a/cuda:1"]),
        # That costs nothing: equal memory may differ a little, but no larger device and no other machine is used.
        ({"a/cuda:0": 80, "a/cuda:1": 80, "b/cuda:0": 81}, (), "", ["a/cuda:0", "b/cuda:0"]),
        ({"a/cuda:0": 24, "a/cuda:1": 24, "b/cuda:0": 80}, (), "", ["a/cuda:0", "a/cuda:1"]),
        ({"a/cuda:0": 24, "a/cuda:1": 24, "b/cuda:0": 24}, (A,), "", ["a/cuda:0", "a/cuda:1"]),
        # The same where memory is not counted.
        ({"cpu:0": None, "cpu:1": None, "b/cpu:0": None}, (), "", ["cpu:0", "b/cpu:0", "cpu:1"]),
    ],
)
def test_order_of_devices_on_several_machines(
    memory: dict[str, int | None], preferred: tuple[frozenset[str], ...], has: str, taken: list[str]
) -> None:
    assert take(memory, preferred=preferred, count=len(taken), has=has) == taken


def test_shared_devices_are_spread_over_machines() -> None:
    memory = {"a/cuda:0": 40, "a/cuda:1": 41, "b/cuda:0": 42}
    slots = DeviceSlots({name: Device(name, size * GIB) for name, size in memory.items()})
    other, own = (PlacementRequest(model, 10 * GIB, dict.fromkeys(memory, 1)) for model in ("n", "m"))
    assert {slots.take(other) for _ in memory} == set(memory)
    assert [slots.take(own) for _ in range(3)] == ["a/cuda:0", "b/cuda:0", "a/cuda:1"]


@pytest.mark.parametrize(
    ("devices", "desired", "left"),
    [
        (["a/cuda:0", "a/cuda:1", "b/cuda:0"], 2, {"a", "b"}),
        (["b/cuda:0", "a/cuda:0", "a/cuda:1"], 2, {"a", "b"}),
        (["a/cuda:0", "a/cuda:1", "b/cuda:0", "b/cuda:1"], 2, {"a", "b"}),
        (["cuda:0", "b/cuda:0", "b/cuda:1", "b/cuda:2"], 2, {"", "b"}),
        (["a/cuda:0", "b/cuda:0", "c/cuda:0", "c/cuda:1"], 3, {"a", "b", "c"}),
    ],
)
def test_last_workers_stay_on_different_machines(devices: list[str], desired: int, left: set[str]) -> None:
    for order in (devices, devices[::-1]):
        replicas = [worker(f"w{n}", device, age_s=100 + n) for n, device in enumerate(order)]
        _, staying = select_to_stop(Observation("m", None, replicas), Decision(desired, "x"), LIMITS, NOW)
        assert {replica.process.device.rpartition("/")[0] for replica in staying} == left


def test_busy_worker_stays_before_a_spread_one() -> None:
    replicas = [worker("w1", "a/cuda:0", load=2), worker("w2", "a/cuda:1", load=1), worker("w3", "b/cuda:0")]
    actions, _ = select_to_stop(Observation("m", None, replicas), Decision(2, "x"), LIMITS, NOW)
    assert actions == [Drain("w3", "x")]


def machine(name: str, *models: str) -> Machine:
    return Machine(name, [Device(f"{name}/cuda:0")], frozenset(models), NOW)


def test_preferred_machines_have_a_standby_worker_or_the_weights() -> None:
    machines = [machine("a", "m"), machine("b", "n")]
    assert preferred_machines("m", [], machines) == (frozenset({"", "a"}),)
    draining = dataclasses.replace(spare("s2", "a/cuda"), drained_at=NOW)
    assert preferred_machines("m", [spare("s", "b/cuda"), draining], machines) == (B, frozenset({"", "a"}))


def demand(desired: int, replicas: list[Replica], slots: list[str], **changes: Any) -> ModelDemand:
    observation = Observation("m", None, replicas)
    return dataclasses.replace(
        ModelDemand(observation, Decision(desired, "x"), LIMITS, CrashBackoff(), slots, need=10 * GIB), **changes
    )


def test_nothing_starts_on_an_unused_machine() -> None:
    slots = ["a/cuda:0", "b/cuda:0"]
    devices = {"a/cuda:0": Device("a/cuda:0", 24 * GIB, "a is silent"), "b/cuda:0": Device("b/cuda:0", 24 * GIB)}
    plan = make_plan([demand(2, [], slots)], NOW, devices)
    assert plan.actions == [Start("m", "b/cuda:0", "x")]
    assert "a/cuda:0 is not used (a is silent)" in plan.blocked["m"].reason


def test_model_without_a_device_says_so() -> None:
    plan = make_plan([demand(1, [], [])], NOW, {})
    assert plan.blocked["m"].reason == "1 more wanted, but no machine with a device for it has joined"


def test_plan_names_the_next_device_of_each_model() -> None:
    slots = ["a/cuda:0", "b/cuda:0"]
    devices = {name: Device(name, 24 * GIB) for name in slots}
    assert make_plan([demand(1, [], slots, preferred=(B,))], NOW, devices).next_devices == {"m": "a/cuda:0"}
    assert make_plan([demand(1, [], slots)], NOW, devices).next_devices == {}


def standby(count: int, spares: list[WorkerProcess], replicas: list[Replica], **changes: Any) -> StandbyTarget:
    observation = Observation("m", None, replicas, spares=spares)
    target = StandbyTarget(observation, count, ["cuda", "a/cuda", "b/cuda"], LIMITS, CrashBackoff(), CrashBackoff())
    return dataclasses.replace(target, **{"with_weights": ("", "a", "b"), **changes})


@pytest.mark.parametrize(
    ("spares", "devices", "changes", "kind"),
    [
        ([], [], {}, "cuda"),
        ([], ["cuda:0"], {}, "a/cuda"),
        ([], ["cuda:0", "a/cuda:0"], {}, "b/cuda"),
        (["a/cuda"], ["cuda:0"], {}, "b/cuda"),
        (["a/cuda"], [], {}, "cuda"),
        ([], ["cuda:0"], {"with_weights": ("",)}, "cuda"),
        (["cuda"], ["cuda:0"], {"with_weights": ("",)}, "a/cuda"),
        ([], ["cuda:0"], {"unusable": ("a",)}, "b/cuda"),
        ([], [], {"unusable": ("", "a", "b")}, None),
    ],
)
def test_standby_workers_are_spread(
    spares: list[str], devices: list[str], changes: dict[str, Any], kind: str | None
) -> None:
    waiting = [spare(f"s{n}", device) for n, device in enumerate(spares)]
    target = standby(len(spares) + 1, waiting, [worker(f"w{n}", d) for n, d in enumerate(devices)], **changes)
    actions = with_standby(Plan([], {}), [target], NOW).actions
    assert [action.device for action in actions if isinstance(action, Start) and action.standby] == (
        [kind] if kind else []
    )


def test_standby_worker_is_activated_on_its_own_machine() -> None:
    target = standby(2, [spare("s1", "a/cuda"), spare("s2", "b/cuda")], [])
    starts = [Start("m", device, "x") for device in ("b/cuda:3", "b/cuda:4", "cuda:0")]
    actions = with_standby(Plan(starts, {}), [target], NOW).actions
    assert list(actions) == [Activate("s2", "m", "b/cuda:3", "x"), *starts[1:]]


def test_surplus_standby_workers_leave_the_fullest_machine() -> None:
    target = standby(2, [spare(f"s{n}", device) for n, device in enumerate(["a/cuda", "a/cuda", "b/cuda"])], [])
    actions = with_standby(Plan([], {}), [target], NOW).actions
    assert list(actions) == [Drain("s1", "3 standby workers, standby is 2")]
