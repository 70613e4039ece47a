"""Workers of another machine as its agent reports them: orders, silence, returns, and restarts of either side."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controller.launchers.agent import AgentLauncher
from wire.agents import (
    ActivateWorker,
    AgentExit,
    AgentHello,
    AgentOrders,
    AgentProcess,
    AgentReport,
    AgentState,
    DeviceInfo,
    DrainWorker,
    KillWorker,
    ModelSettings,
    StartWorker,
)
from worker.agent.order_log import OrderLog, OrderPosition

LOST_AFTER_S = 10.0
SETTINGS = ModelSettings("digest", "{}", {"m": "{}"})


@dataclass
class SimulatedAgent:
    """The agent's side, with processes that only exist by name."""

    orders: OrderLog = field(default_factory=lambda: OrderLog(OrderPosition()))
    session: str = "s1"
    digest: str = ""
    running: dict[str, AgentProcess] = field(default_factory=dict)
    exits: list[AgentExit] = field(default_factory=list)
    count: int = 0
    started: list[str] = field(default_factory=list)

    def receive(self, message: AgentOrders) -> None:
        if message.session == self.session:
            self.exits = [each for each in self.exits if each.number > message.exits_received]
        if message.settings is not None:
            self.digest = message.settings.digest
        for order in self.orders.take(message):
            match order:
                case StartWorker(worker, model, device, generation, standby) if worker not in self.running:
                    self.started.append(worker)
                    self.running[worker] = AgentProcess(worker, model, device, 7, 0.0, generation, standby=standby)
                case DrainWorker(worker) | KillWorker(worker):
                    self.end(worker)
                case ActivateWorker(worker, device) if worker in self.running and self.running[worker].standby:
                    self.running[worker] = msgspec.structs.replace(self.running[worker], device=device, standby=False)

    def end(self, worker: str) -> None:
        if worker in self.running:
            self.count += 1
            self.exits.append(AgentExit(self.count, self.running.pop(worker), 0.0, 0))

    def restart(self) -> None:
        self.session += "x"
        self.count, self.exits = 0, []

    def state(self, silent_s: float = 0.0) -> AgentState:
        position = self.orders.position
        report = AgentReport(
            position.epoch, position.executed, self.digest, list(self.running.values()), list(self.exits)
        )
        hello = AgentHello(7, "1", self.session, [DeviceInfo("sim:0", memory=1 << 30)])
        return AgentState(hello, report, silent_s)


class Pair:
    """A launcher and its agent."""

    def __init__(self) -> None:
        self.now = 100.0
        self.agent = SimulatedAgent()
        self.epoch = 1000
        self.restart_controller()

    def restart_controller(self, epoch: int | None = None) -> None:
        self.epoch = self.epoch + 1 if epoch is None else epoch
        self.launcher = AgentLauncher("box", epoch=self.epoch, lost_after_s=LOST_AFTER_S, clock=lambda: self.now)
        self.launcher.update_settings(SETTINGS, {"m": "g"})

    def exchange(self, *, silent_s: float = 0.0, lose: bool = False) -> None:
        orders = self.launcher.orders()
        if orders is not None and not lose and not silent_s:
            self.agent.receive(orders)
        self.launcher.update(self.agent.state(silent_s), 100.0)
        self.now += 1.0

    def names(self) -> set[str]:
        return {child.id for child in self.launcher.poll().children}


@pytest.fixture
def pair() -> Pair:
    made = Pair()
    made.exchange()
    return made


def test_ages_count_from_the_arrival_of_the_report(pair: Pair) -> None:
    loading = AgentProcess("box:w", "m", "sim:0", 7, 5.0, "g", drained_s=1.0, loaded_s=2.0)
    pair.agent.running["box:w"] = loading
    ended = AgentProcess("box:v", "m", "sim:0", 8, 5.0, "g")
    pair.launcher.start("box:v", "m", "box/sim:0")
    pair.agent.exits.append(AgentExit(1, ended, 1.0, 0))
    reported_at = pair.now - 3.0
    pair.exchange(silent_s=3.0)
    [child], [gone] = pair.launcher.poll()
    assert (child.started_at, child.loaded_at, child.drained_at) == (reported_at - 5, reported_at - 2, reported_at - 1)
    assert (gone.process.started_at, gone.at) == (reported_at - 5, reported_at - 1)


def test_order_that_is_lost_is_sent_again(pair: Pair) -> None:
    pair.launcher.start("box:w", "m", "box/sim:0")
    pair.exchange(lose=True)
    assert pair.names() == {"box:w"}, "it counts as starting, so that nobody starts another"
    for _ in range(3):
        pair.exchange()
    assert pair.agent.started == ["box:w"]
    [child] = pair.launcher.poll().children
    assert (child.device, child.generation, child.pid) == ("box/sim:0", "g", 7)
    assert pair.launcher.orders() is None


def test_silent_machine_loses_workers_and_returns_with_them(pair: Pair) -> None:
    pair.launcher.start("box:w", "m", "box/sim:0")
    pair.exchange()
    pair.launcher.start("box:late", "m", "box/sim:0")
    pair.exchange(silent_s=LOST_AFTER_S + 1)
    children, exits = pair.launcher.poll()
    assert not children
    assert {(each.process.id, each.machine_failed) for each in exits} == {("box:w", True), ("box:late", True)}
    machine = pair.launcher.machine()
    assert machine is not None
    assert machine.silent
    pair.launcher.kill("box:w")
    pair.exchange(silent_s=LOST_AFTER_S + 2)
    assert not pair.launcher.poll().exits
    pair.exchange()
    pair.exchange()
    assert pair.names() == {"box:w"}, "what it runs is taken over; the order that it never got is dropped"
    assert pair.agent.started == ["box:w"]


def test_exit_is_reported_once_and_acknowledged(pair: Pair) -> None:
    pair.launcher.start("box:w", "m", "box/sim:0")
    pair.exchange()
    pair.launcher.drain("box:w")
    pair.exchange()
    exits = list(pair.launcher.poll().exits)
    for _ in range(3):
        pair.exchange()
        exits += pair.launcher.poll().exits
    [ended] = exits
    assert (ended.status, ended.process.drained_at is not None, ended.machine_failed) == (0, True, False)
    assert pair.agent.exits == []


def test_worker_that_ended_with_its_agent_did_not_crash(pair: Pair) -> None:
    pair.launcher.start("box:w", "m", "box/sim:0")
    pair.exchange()
    pair.agent.restart()
    pair.agent.running.clear()
    pair.exchange()
    [ended] = pair.launcher.poll().exits
    assert ended.machine_failed
    assert ended.lost_reason == "it has ended while the agent of box did not run"
    assert not pair.names()


@pytest.mark.parametrize("epoch", [None, 5, 1001], ids=["later", "earlier", "same second"])
def test_next_controller_takes_over_by_any_clock(pair: Pair, epoch: int | None) -> None:
    pair.launcher.start("box:w", "m", "box/sim:0")
    pair.exchange()
    pair.restart_controller(epoch)
    pair.exchange()
    pair.exchange()
    assert pair.names() == {"box:w"}
    pair.launcher.start("box:v", "m", "box/sim:0")
    pair.exchange()
    pair.exchange()
    assert pair.agent.started == ["box:w", "box:v"]
    assert pair.names() == {"box:w", "box:v"}


def test_refused_machine_is_not_used(pair: Pair) -> None:
    pair.launcher.start("box:w", "m", "box/sim:0")
    pair.exchange()
    for silent_s in (0.0, LOST_AFTER_S + 1):  # it ends, and its agent is not started again
        state = msgspec.structs.replace(pair.agent.state(silent_s), refused="another version")
        pair.launcher.update(state, 100.0)
        machine = pair.launcher.machine()
        assert machine is not None
        assert (machine.refused_reason, machine.silent) == ("another version", False)
        assert pair.launcher.problem == "another version"
        assert pair.launcher.orders() is None
    [lost] = pair.launcher.poll().exits
    assert (lost.lost_reason, lost.machine_failed) == ("the machine box is not used: another version", True)


def test_agent_that_connects_late_has_time_for_the_settings(pair: Pair) -> None:
    """Also a new run of the agent without the settings of the former one, and one whose settings are outdated."""
    pair.now += 3600
    for digest in ("", "other"):
        pair.agent.restart()
        pair.agent.digest = digest
        pair.launcher.update(pair.agent.state(), 100.0)
        machine = pair.launcher.machine()
        assert machine is None or not machine.refused_reason
        pair.exchange()
        pair.now += 60
        machine = pair.launcher.machine()
        assert machine is not None
        assert not machine.refused_reason


def test_agent_that_does_not_take_the_settings_is_not_used(pair: Pair) -> None:
    pair.now += 3600
    pair.exchange(silent_s=LOST_AFTER_S + 1)
    pair.agent.digest = "other"
    for _ in range(10):
        pair.exchange(lose=True)
    machine = pair.launcher.machine()
    assert machine is not None
    assert "does not take the present configuration" in machine.refused_reason


def test_new_balancer_has_time_to_meet_the_machine(pair: Pair) -> None:
    pair.launcher.start("box:w", "m", "box/sim:0")
    pair.exchange()
    pair.launcher.update(None, LOST_AFTER_S - 1)
    assert pair.names() == {"box:w"}
    pair.launcher.update(None, LOST_AFTER_S + 1)
    assert pair.names() == set()


def test_machine_that_a_new_balancer_does_not_know_stays_until_its_key_is_revoked(pair: Pair) -> None:
    pair.exchange()
    last = pair.now - 1.0
    pair.now += 60
    for _ in range(2):
        pair.launcher.update(None, LOST_AFTER_S + 1, is_allowed=True)
        machine = pair.launcher.machine()
        assert machine is not None
        assert (machine.silent, machine.last_report_at) == (True, last)
        assert pair.launcher.problem == f"its agent has sent nothing for {pair.now - last:.0f} s"
        assert pair.launcher.orders() is None
    pair.launcher.update(None, LOST_AFTER_S + 1, is_allowed=False)
    assert pair.launcher.machine() is None
    assert pair.launcher.problem == "the key of its agent was revoked"
    pair.exchange()
    assert not pair.launcher.problem


def test_machine_that_stays_away_since_the_start_is_listed_until_its_key_is_revoked() -> None:
    pair = Pair()
    pair.launcher.update(None, 60.0)
    assert (pair.launcher.machine(), pair.launcher.problem) == (None, ""), "the key may just have been made"
    pair.now += LOST_AFTER_S + 1
    pair.launcher.update(None, LOST_AFTER_S - 1)
    assert pair.launcher.machine() is None, "the balancer has just started"
    pair.launcher.update(None, 60.0)
    machine, away = pair.launcher.machine(), "no agent has connected with its key since the server started"
    assert machine is not None
    assert (machine.devices, machine.last_report_at, machine.silent) == ((), None, False)
    assert machine.refused_reason == pair.launcher.problem == away
    assert pair.launcher.orders() is None
    pair.launcher.update(None, 60.0, is_allowed=False)
    assert (pair.launcher.machine(), pair.launcher.problem) == (None, "the key of its agent was revoked")
    pair.launcher.update(None, 60.0)
    assert pair.launcher.machine() == machine, "it has a key again"
    for _ in range(2):
        pair.exchange()
        assert not pair.launcher.problem
    machine = pair.launcher.machine()
    assert machine is not None
    assert machine.devices


def test_texts_of_an_agent_reach_no_terminal_as_they_are(pair: Pair) -> None:
    pair.launcher.start("box:w", "m", "box/sim:0")
    pair.exchange()
    pair.agent.end("box:w")
    last = msgspec.structs.replace(pair.agent.exits[0], tail="one\n\x1b[2Jtwo", start_failure="\x1b[31m", status=4)
    pair.agent.exits = [last]
    pair.exchange()
    [ended] = pair.launcher.poll().exits
    assert "\x1b" not in ended.tail + ended.start_failure
    assert ended.tail.splitlines()[0] == "one"
    state = pair.agent.state()
    devices = [DeviceInfo("sim:0", "A\x1bB"), DeviceInfo("../sim:0"), DeviceInfo("sim:0\n")]
    hello = msgspec.structs.replace(state.hello, devices=devices)
    report = msgspec.structs.replace(state.report, unusable={"m": "\x1b"}) if state.report else None
    pair.launcher.update(AgentState(hello, report, 0.0), 100.0)
    machine = pair.launcher.machine()
    assert machine is not None
    assert [device.name for device in machine.devices] == ["box/sim:0"]
    assert "\x1b" not in machine.unusable_models["m"] + machine.device_names["box/sim:0"]


class LauncherMachine(RuleBasedStateMachine):
    """Random orders, losses, silences and restarts: both sides agree in the end, and no name starts twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.pair.exchange()
        self.count = 0

    def running(self) -> set[str]:
        return self.pair.names()

    @rule()
    def start(self) -> None:
        self.count += 1
        self.pair.launcher.start(f"box:{self.count}", "m", "box/sim:0")

    @rule(immediate=st.booleans(), which=st.integers(0, 5))
    def drain(self, immediate: bool, which: int) -> None:
        for name in sorted(self.running())[which : which + 1]:
            self.pair.launcher.drain(name, immediate=immediate)

    @rule(which=st.integers(0, 5))
    def worker_ends(self, which: int) -> None:
        for name in sorted(self.pair.agent.running)[which : which + 1]:
            self.pair.agent.end(name)

    @rule(lose=st.booleans())
    def exchange(self, lose: bool) -> None:
        self.pair.exchange(lose=lose)

    @rule()
    def silence(self) -> None:
        self.pair.exchange(silent_s=LOST_AFTER_S + 1)
        assert self.running() == set()

    @rule()
    def agent_restarts(self) -> None:
        self.pair.agent.restart()

    @rule()
    def controller_restarts(self) -> None:
        self.pair.restart_controller()

    @invariant()
    def no_name_starts_twice(self) -> None:
        assert len(set(self.pair.agent.started)) == len(self.pair.agent.started)

    def teardown(self) -> None:
        for _ in range(4):
            self.pair.exchange()
        assert self.running() == set(self.pair.agent.running)
        assert self.pair.launcher.orders() is None


TestLauncherMachine = LauncherMachine.TestCase
TestLauncherMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
