"""Policies `static` and `schedule`, and user-defined policies."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import cast
from zoneinfo import ZoneInfo

import pytest

from configs.scaling import POLICY_FIELDS, Scaling
from controller.policies import MEMORY_TYPES, POLICIES, PolicyImportError, custom, find, schedule, static
from controller.types import Decision, Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess

LIMITS = WorkerLimits(min_workers=1, max_workers=8, start_timeout_s=60, drain_timeout_s=60, lost_after_s=10)


def observe(tasks: int | None = 0, ready: int = 1, at: str | None = None, zone: str = "UTC") -> Observation:
    replicas = [Replica(WorkerProcess(f"w{i}", "m", f"sim:{i}", i, 0.0), Stage.READY) for i in range(ready)]
    unix_s = None if at is None else datetime.fromisoformat(at).replace(tzinfo=ZoneInfo(zone)).timestamp()
    return Observation("m", None if tasks is None else Queue(tasks, 0), replicas, unix_s=unix_s)


def test_configuration_and_policies_have_the_same_names() -> None:
    assert POLICY_FIELDS.keys() == POLICIES.keys()
    assert MEMORY_TYPES.keys() <= POLICIES.keys()


@pytest.mark.parametrize(
    ("initial", "min_workers", "tasks", "desired"), [(None, 2, 500, 2), (3, 1, 0, 3), (3, 1, None, 3), (12, 1, 0, 8)]
)
def test_static_policy_keeps_its_number(initial: int | None, min_workers: int, tasks: int | None, desired: int) -> None:
    fixed = Scaling(policy="static", min_workers=min_workers, initial_workers=initial)
    limits = WorkerLimits(min_workers, 8, 60, 60, 10)
    decision, _ = static.decide(observe(tasks), fixed, limits, None, 0.0)
    assert (decision.desired, decision.valid) == (desired, True)


DAY = [{"cron": "0 8 * * 1-5", "workers": 4}, {"cron": "0 20 * * *", "workers": 1}]


@pytest.mark.parametrize(
    ("entries", "at", "zone", "workers"),
    [
        (DAY, "2026-06-17T07:59:59", "UTC", 1),  # a Wednesday
        (DAY, "2026-06-17T08:00:00", "UTC", 4),
        (DAY, "2026-06-17T19:59:59", "UTC", 4),
        (DAY, "2026-06-17T20:00:00", "UTC", 1),
        (DAY, "2026-06-20T12:00:00", "UTC", 1),  # a Saturday
        # The last started entry counts; on a tie the later one in the list.
        ([{"cron": "0 8 * * *", "workers": 2}, {"cron": "0 8 1 * *", "workers": 5}], "2026-07-01T09:00:00", "UTC", 5),
        ([{"cron": "0 8 1 * *", "workers": 5}, {"cron": "0 8 * * *", "workers": 2}], "2026-07-01T09:00:00", "UTC", 2),
        # 08:00 in Tokyo is 23:00 UTC on the day before.
        ([{"cron": "0 8 * * *", "workers": 6, "timezone": "Asia/Tokyo"}, DAY[1]], "2026-06-16T23:30:00", "UTC", 6),
        ([{"cron": "0 8 * * *", "workers": 6, "timezone": "Asia/Tokyo"}, DAY[1]], "2026-06-16T22:30:00", "UTC", 1),
        # Daylight saving time started in Berlin on this day.
        ([{"cron": "0 8 * * *", "workers": 6, "timezone": "Europe/Berlin"}, DAY[1]], "2026-03-29T06:00:00", "UTC", 6),
        ([{"cron": "0 8 * * *", "workers": 6, "timezone": "Europe/Berlin"}, DAY[1]], "2026-03-29T05:59:00", "UTC", 1),
    ],
)
def test_active_schedule_entry_sets_the_number(
    entries: list[dict[str, object]], at: str, zone: str, workers: int
) -> None:
    scaling = Scaling.model_validate({"policy": "schedule", "schedule": entries})
    decision, _ = schedule.decide(observe(at=at, zone=zone), scaling, LIMITS, None, 0.0)
    assert (decision.desired, decision.valid) == (workers, True)


def test_schedule_without_time_is_an_invalid_decision() -> None:
    scaling = Scaling.model_validate({"policy": "schedule", "schedule": DAY})
    decision, _ = schedule.decide(observe(ready=3), scaling, LIMITS, None, 0.0)
    assert (decision.desired, decision.valid) == (3, False)


OWN = """
from controller.types import Decision

def scale(observation):
    return Decision(observation.queue.queued // 10, "ten each")

def number(observation):
    return 3

nothing = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules on the import path."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "tens.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("import no_such_module_anywhere")
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_custom_policy_decides() -> None:
    decision, _ = find("tens:scale")(observe(40), Scaling(policy="tens:scale"), LIMITS, None, 0.0)
    assert decision == Decision(4, "ten each")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere:scale", "nowhere cannot be imported (ModuleNotFoundError: No module named 'nowhere')"),
        ("broken:scale", "broken cannot be imported (ModuleNotFoundError: No module named 'no_such_module_anywhere')"),
        ("tens:scales", "tens has no function scales"),
        ("tens:nothing", "tens has no function nothing"),
    ],
)
def test_policy_import_error_names_the_cause(path: str, message: str) -> None:
    with pytest.raises(PolicyImportError) as raised:
        find(path)
    assert message in str(raised.value)


@pytest.mark.usefixtures("folder")
def test_invalid_return_value_raises_invalid_policy() -> None:
    with pytest.raises(custom.InvalidPolicy, match="must return a Decision with a whole number and a text, not 3"):
        find("tens:number")(observe(1), Scaling(policy="tens:number"), LIMITS, None, 0.0)


def decide_with(returned: object) -> Decision:
    """Return the decision of a custom policy that returns this."""
    policy = custom.CustomPolicy("own:scale", lambda _: cast("Decision", returned))
    return policy(observe(1), Scaling(policy="own:scale"), LIMITS, None, 0.0)[0]


@pytest.mark.parametrize(
    "returned",
    [
        None,
        "three",
        Decision(cast("int", math.nan), "why"),
        Decision(10**30, "why"),
        Decision(2, cast("str", None)),
        Decision(2, "why", valid=cast("bool", None)),
        Decision(2, "why", inputs=cast("Mapping[str, float]", None)),
    ],
)
def test_custom_policy_with_wrong_types_raises_invalid_policy(returned: object) -> None:
    with pytest.raises(custom.InvalidPolicy, match="own:scale must return a Decision"):
        decide_with(returned)


def test_exit_of_custom_policy_is_no_exit_of_the_controller() -> None:
    def scale(_: object) -> Decision:
        sys.exit(3)

    with pytest.raises(custom.InvalidPolicy, match=r"own:scale has called sys.exit\(3\)"):
        custom.CustomPolicy("own:scale", scale)(observe(1), Scaling(policy="own:scale"), LIMITS, None, 0.0)
