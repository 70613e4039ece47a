"""Overrides by commands: their effect, their end, and the rejected ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler
from controller.autoscaler.model_state import ModelState
from controller.autoscaler.overrides import (
    InvalidCommand,
    Override,
    Overrides,
    active_overrides,
    apply_command,
    override_decision,
    request_restart,
    request_worker_restart,
)
from controller.planning.rolling_update import UpdatePolicy
from controller.types import Decision, Observation, Queue, WorkerLimits
from wire.scaling import MAX_HOLD_S, Pause, Resume, Scale

NOW = 1_800_000_000.0
LIMITS = {"a": WorkerLimits(1, 4, 600, 60, 10), "b": WorkerLimits(0, 2, 600, 60, 10)}
HELD = Overrides({"a": Override(2, NOW + 60), "b": Override(0, NOW + 90)}, paused_since=NOW - 5)


@pytest.mark.parametrize(
    ("before", "command", "after"),
    [
        (Overrides(), Scale("a", 3, 600.0), Overrides({"a": Override(3, NOW + 600)})),
        (Overrides(), Scale("b", 0, 1.0), Overrides({"b": Override(0, NOW + 1)})),
        (HELD, Scale("a", 4, 10.0), replace(HELD, holds={"a": Override(4, NOW + 10), "b": Override(0, NOW + 90)})),
        (Overrides(), Pause(), Overrides(paused_since=NOW)),
        (HELD, Pause(), HELD),  # the start of the pause does not change
        (HELD, Resume(), Overrides()),
        (HELD, Resume("a"), replace(HELD, holds={"b": Override(0, NOW + 90)})),
        (Overrides(), Resume("a"), Overrides()),
        (Overrides(renew_before={"a": 7.0}), Resume(), Overrides(renew_before={"a": 7.0})),
    ],
)
def test_command_changes_overrides(before: Overrides, command: Scale | Pause | Resume, after: Overrides) -> None:
    assert apply_command(before, command, LIMITS, NOW) == after


@pytest.mark.parametrize(
    ("command", "param", "message"),
    [
        (Scale("a", 0, 60.0), "workers", "0 workers: a may have 1 to 4 workers (min_workers, max_workers)"),
        (Scale("a", 5, 60.0), "workers", "5 workers: a may have 1 to 4"),
        (Scale("b", -1, 60.0), "workers", "b may have 0 to 2"),
        (Scale("c", 1, 60.0), "model", "no model is named c; served: a, b"),
    ],
)
def test_invalid_command_is_rejected(command: Scale, param: str, message: str) -> None:
    with pytest.raises(InvalidCommand) as raised:
        apply_command(Overrides(), command, LIMITS, NOW)
    assert raised.value.param == param
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("later_s", "limits", "holds"),
    [
        (59.9, LIMITS, {"a": 2, "b": 0}),
        (60.0, LIMITS, {"b": 0}),
        (90.0, LIMITS, {}),
        (0.0, {"b": LIMITS["b"]}, {"b": 0}),  # the other model is no longer served
        (0.0, {"a": replace(LIMITS["a"], min_workers=3), "b": LIMITS["b"]}, {"a": 3, "b": 0}),
        (0.0, {"a": replace(LIMITS["a"], max_workers=1), "b": LIMITS["b"]}, {"a": 1, "b": 0}),
    ],
)
def test_overrides_expire_and_are_clamped_to_bounds(
    later_s: float, limits: dict[str, WorkerLimits], holds: dict[str, int]
) -> None:
    now = active_overrides(HELD, limits, NOW + later_s)
    assert {name: hold.workers for name, hold in now.holds.items()} == holds
    assert now.paused_since == HELD.paused_since


def test_restart_request_covers_served_models_only() -> None:
    first = request_restart(Overrides(), ["a"], LIMITS, NOW)
    assert request_restart(first, ["a", "b"], LIMITS, NOW + 9).renew_before == {"a": NOW + 9, "b": NOW + 9}
    assert active_overrides(first, {"b": LIMITS["b"]}, NOW).renew_before == {}
    with pytest.raises(InvalidCommand, match="no model is named c"):
        request_restart(Overrides(), ["a", "c"], LIMITS, NOW)


def test_override_reason_has_number_and_end() -> None:
    assert (
        override_decision(Override(2, 1_800_000_000.0)).reason == "held at 2 by command until 2027-01-15 08:00:00 UTC"
    )


def test_policy_decides_at_once_when_an_override_ends() -> None:
    def policy(*_: object) -> tuple[Decision, None]:
        return Decision(2, "policy"), None

    limits = WorkerLimits(0, 4, 60.0, 60.0, 10.0)
    model = ModelState(Scaling(interval_s=60), limits, policy, ("cpu:0",), Decision(1, "first"))
    autoscaler = Autoscaler({"m": model})
    seen = {"m": Observation("m", Queue(1, 0), [])}
    overrides: list[dict[str, Decision]] = [{}, {"m": Decision(3, "command")}, {}]
    for now, override in enumerate(overrides):
        autoscaler.set_overrides(paused=False, overrides=override, update_policies={"m": UpdatePolicy()})
        autoscaler.tick(seen, float(now))
        assert model.decision.reason == ("command" if override else "policy")


def test_restart_of_a_worker_replaces_only_running_ones() -> None:
    first = request_worker_restart(Overrides(), "a-1", ["a-1", "a-2"])
    assert first.renew_workers == {"a-1"}
    assert request_worker_restart(first, "a-2", ["a-2"]).renew_workers == {"a-2"}  # the other one has gone
    with pytest.raises(InvalidCommand, match="no worker that is named b-1") as raised:
        request_worker_restart(first, "b-1", ["a-1"])
    assert raised.value.param == "worker"


def test_overrides_from_a_clock_that_was_ahead_end() -> None:
    saved = Overrides({"a": Override(2, 1e300)}, renew_before={"a": NOW + 1e6})
    present = active_overrides(saved, LIMITS, NOW)
    assert present == Overrides({"a": Override(2, NOW + MAX_HOLD_S)}, renew_before={"a": NOW})
    assert override_decision(present.holds["a"]).desired == 2
    assert active_overrides(present, LIMITS, NOW + 1) == present
    assert active_overrides(present, LIMITS, NOW + MAX_HOLD_S).holds == {}
