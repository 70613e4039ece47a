"""Workers of another machine, through its agent: orders go out, and reports come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from configs.devices import is_device_name, local_name, on_machine
from configs.text import printable, printable_lines
from controller.planning.machines import Machine
from controller.types import Device
from host.types import Exit, GpuSensors, MemoryReading, PollResult, WorkerProcess
from wire.agents import (
    MAX_ORDERS,
    MAX_TAIL,
    ActivateWorker,
    AgentExit,
    AgentOrders,
    AgentProcess,
    AgentReport,
    AgentState,
    DrainAll,
    DrainWorker,
    KillWorker,
    ModelSettings,
    NumberedOrder,
    Order,
    StartWorker,
)

_REVOKED = "the key of its agent was revoked"
_NOT_CONNECTED = "no agent has connected with its key since the server started"
_MAX_TEXT = 1000
#: Time in which an agent takes in new settings.
_SETTINGS_WITHIN_S = 5.0


class AgentLauncher:
    """Implements `Launcher` for one machine. An order stays pending until a report says that it is executed.

    A machine that is silent for `lost_after_s` has lost its workers: each exit is reported as the machine's failure,
    and pending orders are dropped. What it still runs when it returns is listed again, and the planner decides anew.
    """

    def __init__(self, machine: str, *, epoch: int, lost_after_s: float, clock: Callable[[], float]) -> None:
        """`epoch` is larger than that of the controller before, such as the Unix time."""
        self.name = machine
        self._epoch = epoch
        self._lost_after_s = lost_after_s
        self._clock = clock
        self._settings: ModelSettings | None = None
        self._settings_at = 0.0
        self._generations: Mapping[str, str] = {}
        self._number = 0
        self._pending: list[NumberedOrder] = []
        #: By name: those of the last report, with what pending orders will change, and those that are ordered.
        self._processes: dict[str, WorkerProcess] = {}
        self._exits: list[Exit] = []
        self._session = ""
        self._exits_received = 0
        #: None before its first connection, and once its key is revoked.
        self._state: AgentState | None = None
        self._is_revoked = False
        self._last_report_at = clock()
        self._is_silent = False
        #: When the present connection after an absence, or of another run of the agent, began.
        self._returned_at = clock()

    def __repr__(self) -> str:
        return f"<AgentLauncher of {self.name}, {len(self._processes)} workers, {len(self._pending)} orders>"

    def __contains__(self, worker: str) -> bool:
        return worker in self._processes

    def update_settings(self, settings: ModelSettings, generations: Mapping[str, str]) -> None:
        """Start workers with these settings from now on. `generations` are their digests by model."""
        self._settings = settings
        self._settings_at = self._clock()
        self._generations = generations

    # ---- Launcher

    def start(self, worker: str, model: str, device: str, *, standby: bool = False) -> None:
        if worker in self._processes:
            return
        generation = self._generations[model]
        self._order(StartWorker(worker, model, local_name(device), generation, standby))
        self._processes[worker] = WorkerProcess(
            worker, model, device, 0, self._clock(), generation=generation, spare=standby
        )

    def activate(self, worker: str, device: str) -> None:
        child = self._processes.get(worker)
        if child is None or not child.spare:
            return
        self._order(ActivateWorker(worker, local_name(device)))
        self._processes[worker] = dataclasses.replace(child, device=device, spare=False, started_at=self._clock())

    def drain(self, worker: str, *, immediate: bool = False) -> None:
        child = self._processes.get(worker)
        if child is None:
            return
        self._order(DrainWorker(worker, immediate))
        self._processes[worker] = dataclasses.replace(child, drained_at=child.drained_at or self._clock())

    def kill(self, worker: str) -> None:
        if worker in self._processes:
            self._order(KillWorker(worker))

    def drain_all(self, after_s: float) -> None:
        """Drain every worker after this time, because the server stops."""
        self._order(DrainAll(after_s))

    def poll(self) -> PollResult:
        exits, self._exits = self._exits, []
        return PollResult(list(self._processes.values()), exits)

    def _order(self, order: Order) -> None:
        self._number += 1
        self._pending.append(NumberedOrder(self._number, order))

    # ---- exchange

    def orders(self) -> AgentOrders | None:
        """Return what the agent has to know; None if it knows everything."""
        report = self._state.report if self._state is not None else None
        if report is None or self._is_silent:
            return None
        settings = self._settings
        knows_settings = settings is None or report.settings == settings.digest
        if not self._pending and not report.exits and knows_settings and report.epoch == self._epoch:
            return None
        return AgentOrders(
            self._epoch,
            self._pending[:MAX_ORDERS],
            self._session,
            self._exits_received,
            None if knows_settings else settings,
        )

    def update(self, state: AgentState | None, uptime_s: float, *, is_allowed: bool = True) -> None:
        """Take in the machine's state; None if it has not connected since the balancer started `uptime_s` ago.

        A machine that stays away is kept, unless its key was revoked.
        """
        now = self._clock()
        if state is None:
            if self._state is None:  # the key may just have been made
                uptime_s = min(uptime_s, now - self._last_report_at)
            if uptime_s > self._lost_after_s:
                self._is_revoked = not is_allowed
                if not is_allowed:
                    self._state = None
                self._lose(now)
            return
        self._state, self._is_revoked = state, False
        self._last_report_at = now - state.silent_s
        if state.silent_s > self._lost_after_s or state.refused:
            self._lose(now)
            return
        if state.report is None:  # it has just connected
            return
        if self._is_silent or state.hello.session != self._session:
            self._returned_at = now
        self._is_silent = False
        # Ages in the report count from its arrival at the balancer.
        self._take_in(state.hello.session, state.report, self._last_report_at)

    def _lose(self, now: float) -> None:
        """Count every worker as lost, once."""
        self._is_silent = True
        self._pending.clear()
        reason = f"the machine {self.name} is not used: {self.problem}"
        self._exits += [_lost(child, now, reason) for child in self._processes.values()]
        self._processes.clear()

    def _take_in(self, session: str, report: AgentReport, now: float) -> None:
        """Take in a report that arrived at `now`."""
        is_foreign = report.epoch == self._epoch and report.executed > self._number
        if report.epoch > self._epoch or is_foreign:  # the clock was set back since an earlier controller
            self._epoch = report.epoch + 1
            self._pending = [NumberedOrder(n, each.order) for n, each in enumerate(self._pending, 1)]
            self._number = len(self._pending)
        if session != self._session:
            self._session, self._exits_received = session, 0
        if report.epoch == self._epoch:
            self._pending = [each for each in self._pending if each.number > report.executed]
        for ended in report.exits:
            if ended.number > self._exits_received:
                self._exits_received = ended.number
                self._on_exit(ended, now)
        reported = {each.worker: each for each in report.processes}
        ended_names = {ended.process.worker for ended in report.exits}
        ordered = {each.order.worker for each in self._pending if isinstance(each.order, StartWorker)}
        for name in self._processes.keys() - reported.keys() - ordered:
            child = self._processes.pop(name)
            if name not in ended_names:
                self._exits.append(_lost(child, now, self._unseen_exit))
        for name, each in reported.items():
            self._processes[name] = self._with_orders(self._process(each, now))

    def _on_exit(self, ended: AgentExit, now: float) -> None:
        child = self._processes.pop(ended.process.worker, None)
        if child is None:  # counted as lost before
            return
        reported = self._process(ended.process, now)
        process = dataclasses.replace(reported, drained_at=reported.drained_at or child.drained_at)
        self._exits.append(
            Exit(
                process,
                now - ended.age_s,
                ended.status,
                printable_lines(ended.tail, MAX_TAIL),
                printable(ended.start_failure, _MAX_TEXT),
                ended.has_served,
                self._unseen_exit if ended.machine_failed else "",
                ended.machine_failed,
            )
        )

    @property
    def _unseen_exit(self) -> str:
        return f"it has ended while the agent of {self.name} did not run"

    def _process(self, each: AgentProcess, now: float) -> WorkerProcess:
        """Return the process on the controller's clock. The times of a known process do not vary."""
        known = self._processes.get(each.worker)
        is_same = known is not None and known.pid == each.pid and known.spare == each.standby
        return WorkerProcess(
            each.worker,
            each.model,
            on_machine(self.name, each.device),
            each.pid,
            known.started_at if known is not None and is_same else now - each.age_s,
            _earlier(known.drained_at if known is not None else None, each.drained_s, now),
            generation=each.generation,
            spare=each.standby,
            loaded_at=_earlier(known.loaded_at if known is not None else None, each.loaded_s, now),
        )

    def _with_orders(self, child: WorkerProcess) -> WorkerProcess:
        """Return the process as it will be when the pending orders are executed."""
        for each in self._pending:
            match each.order:
                case ActivateWorker(worker, device) if worker == child.id and child.spare:
                    child = dataclasses.replace(child, device=on_machine(self.name, device), spare=False)
                case _:
                    pass
        return child

    # ---- the planner's view

    def machine(self) -> Machine | None:
        """Return the machine as its last report describes it; None before the first with the present settings.

        One that stays away since this controller and the balancer have started has no report, and no devices.
        """
        state = self._state
        if state is None and self._is_silent and not self._is_revoked:
            return Machine(self.name, (), frozenset(), None, refused_reason=_NOT_CONNECTED)
        if state is None or (state.report is None and not state.refused):
            return None
        report, hello = state.report or AgentReport(0, 0), state.hello
        devices = [each for each in hello.devices if is_device_name(on_machine(self.name, each.name))]
        if not state.refused and not report.settings and not self._are_settings_late:
            return None
        return Machine(
            self.name,
            [Device(on_machine(self.name, each.name), each.memory) for each in devices],
            frozenset(report.models),
            self._last_report_at,
            self._is_silent and not state.refused,  # the reason of a refusal stays true
            self._refused_reason(report, state),
            {model: printable(reason, _MAX_TEXT) for model, reason in report.unusable.items()},
            [
                MemoryReading(
                    on_machine(self.name, each.device),
                    each.total_bytes,
                    each.used_bytes,
                    each.processes,
                    printable(each.fault, _MAX_TEXT),
                    GpuSensors(each.temperature_c, each.power_w, each.utilisation),
                )
                for each in report.readings
            ],
            {on_machine(self.name, each.name): printable(each.product, 100) for each in devices if each.product},
            hello.memory_bytes,
            report.available_bytes,
        )

    def _refused_reason(self, report: AgentReport, state: AgentState) -> str:
        if state.refused:
            return state.refused
        if report.stopping:
            return "its agent is stopping"
        is_other = self._settings is not None and report.settings != self._settings.digest
        if is_other and self._are_settings_late:
            return "its agent does not take the present configuration; its log says why"
        return ""

    @property
    def _are_settings_late(self) -> bool:
        """Whether the agent has had the time to take in the present settings."""
        return self._clock() > max(self._settings_at, self._returned_at) + _SETTINGS_WITHIN_S

    @property
    def problem(self) -> str:
        """Why the machine is not used; empty if it is."""
        if self._is_revoked:
            return _REVOKED
        if self._state is None:
            return _NOT_CONNECTED if self._is_silent else ""
        if self._state.refused:
            return self._state.refused
        silent_s = max(self._clock() - self._last_report_at, 0.0)
        return f"its agent has sent nothing for {silent_s:.0f} s" if self._is_silent else ""


def _lost(child: WorkerProcess, at: float, reason: str) -> Exit:
    return Exit(child, at, None, lost_reason=reason, machine_failed=True)


def _earlier(known: float | None, age_s: float | None, now: float) -> float | None:
    """Return the time of an event that was known before, or has happened `age_s` ago."""
    if known is not None:
        return known
    return None if age_s is None else now - age_s
