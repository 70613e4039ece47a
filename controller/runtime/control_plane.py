"""The controller's side of `/internal/controller`: reports to the balancer and executes the commands it returns."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from configs.load import ConfigError
from configs.settings import Settings
from configs.text import clip
from controller.autoscaler.autoscaler import Autoscaler, TickResult
from controller.autoscaler.model_state import ModelState
from controller.autoscaler.overrides import (
    InvalidCommand,
    Overrides,
    active_overrides,
    apply_command,
    check_worker,
    override_decision,
    request_restart,
    request_worker_restart,
)
from controller.balancer_client import REPORT, BalancerHttpClient
from controller.config_diff import ConfigChange, diff_settings, generation
from controller.launchers.machines import MachinesLauncher
from controller.planning.machines import Machine
from controller.planning.rolling_update import UpdatePolicy
from controller.runtime.decision_log import DecisionLog
from controller.runtime.inventory import join_time_s
from controller.runtime.report import MAX_TEXT, ReportInput, build_report
from controller.runtime.state_file import StateFile
from controller.types import WorkerLimits
from host.types import SetupError
from wire.scaling import Command, CommandResult, DrainWorker, PendingCommand, Reload, RestartWorker

log = logging.getLogger("controller")

#: Interval between two saves of the policies' state, which changes with every decision.
_SAVE_INTERVAL_S = 5.0
#: Commands executed per report.
_MAX_COMMANDS = 200


class ControlPlaneAgent:
    """Holds the overrides, and applies commands to the autoscaler and the launcher."""

    def __init__(
        self,
        settings: Settings,
        autoscaler: Autoscaler,
        balancer: BalancerHttpClient,
        launcher: MachinesLauncher,
        state_file: StateFile,
        *,
        read_settings: Callable[[], Settings],
        build_models: Callable[[Settings, Sequence[Machine], bool], Mapping[str, ModelState]],
        device_names: Mapping[str, str],
    ) -> None:
        """`read_settings` raises `ConfigError`, `build_models` raises `SetupError`.

        `build_models` takes the other machines, and whether more are awaited.
        """
        self.settings = settings
        self._autoscaler = autoscaler
        self._balancer = balancer
        self._launcher = launcher
        self._state_file = state_file
        self._read_settings = read_settings
        self._build_models = build_models
        self._device_names = device_names
        self._machines: Sequence[Machine] = ()
        #: Whether machines were awaited when the models got their devices, and those that there were.
        self._started_at = time.monotonic()
        self._join_by = self._started_at + join_time_s(settings)
        self._built_for: list[object] = [join_time_s(settings) > 0]
        self._overrides = Overrides()
        self._decisions = DecisionLog()
        #: Number of the newest decision that the balancer has.
        self._acked_decision = 0
        self._is_unsaved = False
        self._saved_at = self._started_at
        #: Names of the running workers.
        self._workers: frozenset[str] = frozenset()
        #: By command id, until the balancer no longer lists the command.
        self._results: dict[str, CommandResult] = {}
        self._restore()
        self._apply_overrides()

    def update_machines(self, machines: Sequence[Machine]) -> None:
        """Give the models the devices of these machines."""
        self._machines = machines
        places = [
            (machine.name, tuple(device.name for device in machine.devices), tuple(machine.unusable_models))
            for machine in machines
            if machine.devices  # one that is away changes nothing
        ]
        awaits = time.monotonic() < self._join_by
        if [awaits, *places] != self._built_for:
            self._built_for = [awaits, *places]
            self._update_slots(awaits)

    def _update_slots(self, awaits: bool) -> None:
        try:
            fresh = self._build_models(self.settings, self._machines, awaits)
        except SetupError as error:
            log.error("the devices of the machines are not used: %s", error)
            return
        for name, model in self._autoscaler.models.items():
            model.update_slots(fresh[name])

    def _expire_overrides(self) -> None:
        overrides = active_overrides(self._overrides, self._limits(), time.time())
        if overrides != self._overrides:
            for model in self._overrides.holds.keys() - overrides.holds.keys():
                log.info("%s: the override has ended: its policy decides again", model)
            self._overrides = overrides
            self._apply_overrides()
            self._save()

    def save_if_due(self) -> None:
        """Save the policies' state after a decision, at most every `_SAVE_INTERVAL_S`."""
        if self._is_unsaved and time.monotonic() - self._saved_at >= _SAVE_INTERVAL_S:
            self._save()

    async def report(self, result: TickResult, now: float, *, is_connected: bool) -> None:
        """Keep and log the decisions. If the balancer answers, report, and execute the commands in the answer.

        This repeats while commands arrive: their senders wait for the result.
        """
        if self._overrides != Overrides():
            self._expire_overrides()
        offset = time.time() - time.monotonic()
        for event in result.decided:
            self._decisions.add(event, offset + event.at)
        self._decisions.log_blocked(result.plan.blocked, now)
        self._is_unsaved |= bool(result.decided)
        self._workers = frozenset(
            replica.process.id for demand in result.demands for replica in demand.observation.replicas
        )
        is_due = is_connected
        while is_due:
            state = ReportInput(
                self._autoscaler,
                result,
                self._overrides,
                self._device_names,
                time.monotonic(),
                time.time(),
                self._started_at,
                self._decisions.latest,
                self._decisions.after(self._acked_decision),
                self._acked_decision,
                self._decisions.last,
                tuple(self._results.values()),
            )
            answer = await self._balancer.call(REPORT, build_report(state))
            if answer is None:
                return
            self._acked_decision = answer.last_decision
            pending = {command.id for command in answer.commands}
            self._results = {number: result for number, result in self._results.items() if number in pending}
            new = [command for command in answer.commands if command.id not in self._results][:_MAX_COMMANDS]
            self._results |= {command.id: self._execute(command) for command in new}
            is_due = bool(new)

    def close(self) -> None:
        """Save the state for the next controller."""
        self._save(final=True)

    # ---- commands

    def _execute(self, pending: PendingCommand) -> CommandResult:
        command = pending.command
        log.info("command: %s", _describe(command))
        try:
            if isinstance(command, Reload):
                changed = self.reload(command.models)
                rolling = (*changed.rolling, *(f"the workers of {name}" for name in command.models))
                return CommandResult(pending.id, "", None, changed.applied, rolling, changed.needs_restart)
            if isinstance(command, DrainWorker):
                check_worker(command.worker, self._workers)
                self._launcher.drain(command.worker)
                return CommandResult(pending.id, applied=(_describe(command),))
            if isinstance(command, RestartWorker):
                self._overrides = request_worker_restart(self._overrides, command.worker, self._workers)
                self._apply_overrides()
                self._save()
                return CommandResult(pending.id, rolling=(command.worker,))
            self._overrides = apply_command(self._overrides, command, self._limits(), time.time())
        except InvalidCommand as error:
            return CommandResult(pending.id, str(error), error.param)
        except (ConfigError, SetupError) as error:
            return CommandResult(
                pending.id, clip(f"the configuration is rejected, and nothing has changed:\n{error}", MAX_TEXT)
            )
        except OSError as error:
            text = f"the new configuration cannot be written, and nothing has changed: {error}"
            return CommandResult(pending.id, text)
        self._apply_overrides()
        self._save()
        return CommandResult(pending.id, applied=(_describe(command),))

    def reload(self, models: Sequence[str] = ()) -> ConfigChange:
        """Read the configuration again, and replace the workers of `models` even if no setting changed.

        Raises `ConfigError`, `SetupError`, `InvalidCommand` and `OSError`; then nothing has changed.
        """
        changed = diff_settings(self.settings, self._read_settings())
        join_by = self._started_at + join_time_s(changed.settings)
        fresh = self._build_models(changed.settings, self._machines, time.monotonic() < join_by)
        overrides = request_restart(self._overrides, models, list(fresh), time.time())
        self._launcher.update_settings(changed.settings)
        self.settings, self._join_by = changed.settings, join_by
        for name, model in self._autoscaler.models.items():
            model.update_settings(fresh[name])
        self._overrides = active_overrides(overrides, self._limits(), time.time())
        self._apply_overrides()
        self._save()
        log.info("configuration read again: %s", changed)
        return changed

    def _apply_overrides(self) -> None:
        """Pass the overrides to the autoscaler."""
        offset = time.monotonic() - time.time()
        replaced_before = {name: before + offset for name, before in self._overrides.renew_before.items()}
        renew = self._overrides.renew_workers
        self._autoscaler.set_overrides(
            paused=self._overrides.paused_since is not None,
            overrides={name: override_decision(hold) for name, hold in self._overrides.holds.items()},
            update_policies={
                name: UpdatePolicy(
                    generation(self.settings, name), model.scaling.max_worker_age_s, replaced_before.get(name), renew
                )
                for name, model in self._autoscaler.models.items()
            },
        )

    def _limits(self) -> dict[str, WorkerLimits]:
        return {name: model.limits for name, model in self._autoscaler.models.items()}

    # ---- state

    def _restore(self) -> None:
        """Continue from the state of an earlier controller, if there is one."""
        saved = self._state_file.load()
        if saved is not None:
            self._overrides = active_overrides(saved.overrides, self._limits(), time.time())
            self._decisions = DecisionLog(saved.last_decision)
            self._autoscaler.restore(saved.memory, time.monotonic(), saved.age_s)
        if self._overrides.paused_since is not None:
            log.warning("scaling is paused by a command: `python -m controller resume` ends it")
        for model, hold in self._overrides.holds.items():
            log.warning("%s is %s", model, override_decision(hold).reason)

    def _save(self, *, final: bool = False) -> None:
        self._is_unsaved, self._saved_at = False, time.monotonic()
        self._state_file.save(self._overrides, self._decisions.last, self._autoscaler.dump_state(), final=final)


def _describe(command: Command) -> str:
    """Return the command with its parameters in one line."""
    match command:
        case Reload(models):
            return f"reload{', with new workers for ' + ', '.join(models) if models else ''}"
        case DrainWorker(worker):
            return f"drain worker {worker}"
        case RestartWorker(worker):
            return f"restart worker {worker}"
        case _:
            fields = msgspec.structs.asdict(command).items()
            return " ".join([type(command).__name__.lower(), *(f"{k} {v}" for k, v in fields if v is not None)])
