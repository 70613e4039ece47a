"""Between people and the controller: nothing said is lost or counted twice, whichever of the two starts anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from configs.scaling import Scaling
from controller.autoscaler.autoscaler import Autoscaler, DecisionEvent, TickResult
from controller.autoscaler.model_state import ModelState
from controller.autoscaler.overrides import Override, Overrides
from controller.planning.plan import Blocked, ModelDemand, Plan
from controller.planning.rolling_update import UpdatePolicy, outdated
from controller.policies import queue_depth
from controller.runtime.decision_log import DecisionLog
from controller.runtime.report import ReportInput, build_report
from controller.types import CrashBackoff, Decision, Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess
from loadbalancer.scaling.control_plane import (
    ABSENT_AFTER_S,
    MAX_PENDING_COMMANDS,
    ControlPlane,
    TooManyCommands,
    direction,
)
from wire.scaling import (
    MAX_DECISIONS,
    MAX_DECISIONS_PER_REPORT,
    Command,
    CommandResult,
    ControllerReport,
    DecisionRecord,
    ModelRecord,
    Pause,
    Resume,
    Scale,
)


def decision(
    number: int, model: str = "a", provisioned: int = 1, desired: int = 1, *, valid: bool = True
) -> DecisionRecord:
    return DecisionRecord(number, 0.0, model, "tick", provisioned, 0, desired, valid, "", {})


def said(
    *decisions: DecisionRecord, after: int = 0, last: int | None = None, obeyed: tuple[CommandResult, ...] = ()
) -> ControllerReport:
    highest = max((one.number for one in decisions), default=0) if last is None else last
    return ControllerReport(0.0, 0.0, (), (), (), None, after, decisions, highest, obeyed)


def test_a_report_grows_old() -> None:
    control = ControlPlane()
    assert control.report(0.0) is None
    control.on_report(said(), 100.0)
    assert control.report(100.0 + ABSENT_AFTER_S - 0.1) == said()
    assert control.report(100.0 + ABSENT_AFTER_S) is None
    assert control.models(100.0 + ABSENT_AFTER_S) == {}


def test_a_model_cannot_start_only_while_a_controller_says_so() -> None:
    control = ControlPlane()
    assert control.cannot_start("a", 0.0) == ""
    broken = ModelRecord("a", 1, 1, 1, 0, 0, 0, 0, "static", "", {}, cannot_start="cut short")
    control.on_report(msgspec.structs.replace(said(), models=(broken,)), 100.0)
    assert (control.cannot_start("a", 101.0), control.cannot_start("b", 101.0)) == ("cut short", "")
    assert control.cannot_start("a", 100.0 + ABSENT_AFTER_S) == ""
    control.on_report(said(), 102.0)
    assert control.cannot_start("a", 102.0) == ""


def test_decisions_are_kept_once_in_order_and_paged() -> None:
    control = ControlPlane()
    control.on_report(said(decision(1), decision(2, "b")), 0.0)
    answer, _ = control.on_report(said(decision(1), decision(2, "b"), decision(3, desired=2)), 1.0)
    assert answer.last_decision == 3
    assert [one.number for one in control.page(None, None, 10).decisions] == [3, 2, 1]
    assert control.directions == {("a", "stay"): 1, ("b", "stay"): 1, ("a", "up"): 1}
    page = control.page("a", None, 1)
    assert ([one.number for one in page.decisions], page.has_more) == ([3], True)
    page = control.page("a", 3, 1)
    assert ([one.number for one in page.decisions], page.has_more) == ([1], False)


def test_the_ring_is_bounded_and_begins_anew_with_the_count() -> None:
    control = ControlPlane()
    for number in range(1, 1301):
        control.on_report(said(decision(number)), 0.0)
    assert len(control.page(None, None, 2000).decisions) == MAX_DECISIONS
    answer, _ = control.on_report(said(decision(1), last=1), 0.0)
    assert answer.last_decision == 1
    assert [one.number for one in control.page(None, None, 10).decisions] == [1]


@pytest.mark.parametrize(
    ("one", "way"),
    [
        (decision(1, desired=2), "up"),
        (decision(1, desired=0), "down"),
        (decision(1), "stay"),
        (decision(1, desired=5, valid=False), "none"),
    ],
)
def test_which_way_a_decision_goes(one: DecisionRecord, way: str) -> None:
    assert direction(one) == way


def test_orders_are_handed_out_until_they_are_answered_or_withdrawn() -> None:
    control = ControlPlane()
    control.order("x", Pause())
    control.order("y", Resume())
    orders, done = control.on_report(said(), 0.0)
    assert ([one.id for one in orders.commands], done) == (["x", "y"], [])
    orders, done = control.on_report(said(obeyed=(CommandResult("x"), CommandResult("unknown"))), 1.0)
    assert ([one.id for one in orders.commands], [one.id for one in done]) == (["y"], ["x"])
    control.withdraw("y")
    assert control.on_report(said(), 2.0)[0].commands == []
    for number in range(MAX_PENDING_COMMANDS):
        control.order(str(number), Pause())
    with pytest.raises(TooManyCommands):
        control.order("one more", Pause())


# ---- a controller and a balancer that forget, over a line that loses


class Line(RuleBasedStateMachine):
    """Decisions and orders between both programs, each of which may start anew, with answers that get lost."""

    @initialize()
    def begin(self) -> None:
        self.control, self.chronicle = ControlPlane(), DecisionLog()
        self.acknowledged, self.made = 0, 0
        self.obeyed: dict[str, CommandResult] = {}
        self.given: dict[str, Command] = {}
        self.done: list[str] = []
        self.answered: list[str] = []

    @rule(count=st.integers(1, 350))
    def decides(self, count: int) -> None:
        for _ in range(count):
            self.made += 1
            seen = Observation("a", Queue(0, 0), [])
            self.chronicle.add(DecisionEvent("a", 0.0, "tick", seen, Decision(self.made, "")), 0.0)

    @rule()
    def a_person_orders(self) -> None:
        number = f"order {len(self.given)}"
        self.given[number] = Scale("a", 1, 60.0)
        self.control.order(number, self.given[number])

    @rule(lost=st.booleans())
    def exchange(self, lost: bool = False) -> None:
        told = said(
            *self.chronicle.after(self.acknowledged),
            after=self.acknowledged,
            last=self.chronicle.last,
            obeyed=tuple(self.obeyed.values()),
        )
        assert len(told.decisions) <= MAX_DECISIONS_PER_REPORT
        answer, done = self.control.on_report(told, 0.0)
        self.answered += [one.id for one in done]
        if lost:
            return
        self.acknowledged = answer.last_decision
        wanted = {one.id for one in answer.commands}
        self.obeyed = {number: one for number, one in self.obeyed.items() if number in wanted}
        for one in answer.commands:
            if one.id not in self.obeyed:
                self.done.append(one.id)
                self.obeyed[one.id] = CommandResult(one.id)

    @rule()
    def the_balancer_starts_anew(self) -> None:
        self.control = ControlPlane()
        self.given.clear()  # whoever waited for an answer has lost the connection
        self.obeyed.clear()
        self.done.clear()
        self.answered.clear()

    @rule()
    def the_controller_starts_anew(self) -> None:
        self.chronicle, self.acknowledged = DecisionLog(self.chronicle.last), 0
        self.made = self.chronicle.last

    @rule()
    def all_is_quiet(self) -> None:
        for _ in range(8):
            self.exchange()
        kept = [one.number for one in self.control.page(None, None, MAX_DECISIONS).decisions]
        own = [one.number for one in self.chronicle.after(0)]
        assert kept == sorted(set(kept), reverse=True)
        assert set(own) <= set(kept), "the balancer has all that the controller can still tell"
        assert sorted(self.answered) == sorted(self.given), "every order is answered"

    @invariant()
    def nothing_twice(self) -> None:
        assert len(set(self.done)) == len(self.done), "no order is obeyed twice"
        assert len(set(self.answered)) == len(self.answered)


TestLine = Line.TestCase
TestLine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# ---- what a report says


def test_whatever_a_policy_says_the_balancer_can_read_it() -> None:
    chronicle, seen = DecisionLog(), Observation("m", Queue(0, 0), [])
    strange: dict[str, Any] = {"x" * 999: 1, "nan": float("nan"), "text": "seven", "yes": True}
    chronicle.add(DecisionEvent("m", 0.0, "tick", seen, Decision(1, "why " * 9999, inputs=strange)), 0.0)
    sent = msgspec.json.encode(said(*chronicle.after(0), last=1))
    [read] = msgspec.json.decode(sent, type=ControllerReport).decisions
    assert len(read.reason) == 4000
    assert read.inputs == {"x" * 100: 1.0, "yes": 1.0}


def test_a_report_tells_how_everything_stands() -> None:
    limits, now = WorkerLimits(1, 4, 600, 60, 10), 1000.0
    old, new = (
        Replica(WorkerProcess(name, "m", f"sim:{place}", 7, now - 50, generation=made), stage, load)
        for name, place, made, stage, load in (("w", 0, "old", Stage.READY, 3), ("v", 1, "new", Stage.STARTING, 0))
    )
    spare = WorkerProcess("s", "m", "sim", 8, now - 5, spare=True)
    model = ModelState(
        Scaling(),
        limits,
        queue_depth.decide,
        ["sim:0", "sim:1", "sim:2"],
        Decision(2, "two"),
        update_policy=UpdatePolicy("new"),
    )
    model.crashes, model.lost = CrashBackoff(1, now, now), 1
    seen = {"m": Observation("m", Queue(5, 3), [old, new], spares=[spare], owed=1)}
    reasons = outdated([old, new], model.update_policy, now)
    demand = ModelDemand(seen["m"], model.decision, model.limits, model.crashes, model.slots, outdated=reasons)
    chronicle = DecisionLog(41)
    chronicle.add(
        DecisionEvent("m", now, "tick", seen["m"], Decision(2, "because", inputs={"z": 1.5, "never": float("inf")})),
        9.0,
    )
    standing = Overrides({"m": Override(2, 1234.0)}, paused_since=8.0)
    view = ReportInput(
        Autoscaler({"m": model}),
        TickResult(Plan([], {"m": Blocked("devices", "no place")}), [], [demand]),
        standing,
        {"sim:0": "a name"},
        now,
        10.0,
        900.0,
        chronicle.latest,
        chronicle.after(0),
        0,
        chronicle.last,
    )
    told = build_report(view)
    assert (told.time, told.uptime_s, told.paused_since, told.last_decision) == (10.0, 100.0, 8.0, 42)
    [record] = told.models
    assert (record.ready, record.starting, record.draining, record.provisioned, record.spares) == (1, 1, 0, 3, 1)
    assert (record.desired, record.min_workers, record.max_workers, record.crashes) == (2, 1, 4, 1)
    assert (record.reason, record.inputs, record.blocked_reason) == ("because", {"z": 1.5}, "no place")
    assert record.rolling_update == "1 of 2 to be replaced: its settings have changed; stopped by a crash"
    assert record.override is not None
    assert (record.override.workers, record.override.until) == (2, 1234.0)
    assert [(one.worker, one.stage, one.load, one.generation, one.outdated) for one in told.replicas] == [
        ("w", "ready", 3, "old", "its settings have changed"),
        ("v", "starting", 0, "new", ""),
        ("s", "spare", 0, "", ""),
    ]
    assert [(one.device, one.name, one.workers) for one in told.devices] == [
        ("sim:0", "a name", ("w",)),
        ("sim:1", "", ("v",)),
        ("sim:2", "", ()),
    ]
    [made] = told.decisions
    assert (made.number, made.time, made.trigger, made.provisioned, made.desired) == (42, 9.0, "tick", 3, 2)
    assert chronicle.after(42) == ()
    assert build_report(replace(view, result=TickResult(Plan([], {}), []))).models == ()
