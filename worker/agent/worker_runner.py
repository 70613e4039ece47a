"""Carries out orders on this machine: the worker processes, their exits, and the settings that they start with."""

from __future__ import annotations

import logging
import re
import signal
import time
from collections.abc import Mapping

import msgspec

from configs.cli import to_yaml
from configs.devices import is_local_name
from configs.files import atomic_write, describe_os_error
from configs.paths import children_dir, log_dir, run_dir
from configs.settings import Settings
from host.processes import Processes
from host.types import Exit, WorkerProcess
from host.worker_commands import WorkerCommands
from wire.agents import (
    MAX_EXITS,
    ActivateWorker,
    AgentExit,
    AgentProcess,
    DrainAll,
    DrainWorker,
    KillWorker,
    ModelSettings,
    Order,
    StartWorker,
)
from wire.curve import WorkerKey
from worker.agent.model_paths import LocalModels, local_models

log = logging.getLogger(__name__)

#: Exits that the controller has not acknowledged; beyond it the oldest are dropped.
_MAX_UNACKNOWLEDGED = 1000
_EXIT_CANNOT_START = 4
#: It names files in the data directory, and stands in a command line.
_WORKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}", re.ASCII)


class WorkerRunner:
    """The workers of this machine. Its records on disk let the next agent adopt them."""

    def __init__(self, settings: Settings, address: str, key: WorkerKey) -> None:
        """Raises `OSError` if the data directory cannot be used."""
        self._own = settings
        data_dir = settings.data_dir.resolve()
        run = run_dir(data_dir)
        self.fetched = data_dir / "weights"
        self._processes = Processes(children_dir(data_dir), log_dir(data_dir), settings.logging)
        self._config, self._received = run / "config.yaml", run / "models.json"
        key_file = run / "worker.key"
        key_file.touch(0o600)
        atomic_write(key_file, msgspec.yaml.encode(key))
        key_file.chmod(0o600)
        self._commands = WorkerCommands(data_dir, self._config, ["--join", address, "--key-file", str(key_file)])
        self._exits: list[AgentExit] = []
        self._exit_count = 0
        #: When every worker is drained, because the server stops.
        self._drain_all_at: float | None = None
        #: Digest of the received settings, and what this machine makes of them.
        self.digest = ""
        self.models = LocalModels(settings, frozenset(), {}, ())
        self._restore_settings()

    def __repr__(self) -> str:
        return f"<WorkerRunner with settings {self.digest or 'none'}>"

    def adopt(self) -> list[WorkerProcess]:
        """Take over the workers of an earlier agent."""
        return self._processes.adopt(report_ended=True)

    # ---- settings

    def _restore_settings(self) -> None:
        try:
            received = msgspec.json.decode(self._received.read_bytes(), type=ModelSettings)
            self._use(received)
        except (OSError, msgspec.MsgspecError, ValueError):
            log.debug("no settings of an earlier agent")

    def update_settings(self, received: ModelSettings) -> None:
        """Start workers with these settings from now on. Raises `ValueError` and `OSError` without a change."""
        self._use(received)
        atomic_write(self._received, msgspec.json.encode(received))

    def _use(self, received: ModelSettings) -> None:
        models = local_models(self._own, received, self.fetched)
        atomic_write(self._config, to_yaml(models.settings).encode())
        for name, reason in models.unusable.items():
            if self.models.unusable.get(name) != reason:
                log.warning("%s cannot run here: %s", name, reason)
        self._last_received, self.models, self.digest = received, models, received.digest

    def look_again(self) -> bool:
        """Look again for the files of the models, after some were fetched. False: that has to be repeated."""
        try:
            self._use(self._last_received)
        except OSError as error:
            log.error("the files that were fetched are not used yet: %s", describe_os_error(error))
            return False
        return True

    @property
    def orphan_after_s(self) -> float:
        return self.models.settings.workers.orphan_after_s

    # ---- orders

    def execute(self, order: Order) -> None:
        """Carry out the order. It changes nothing if it was carried out before, or if a name in it is none."""
        if not _is_valid(order):
            log.error("an order with an invalid name is not carried out: %r", order)
            return
        match order:
            case StartWorker():
                self._start(order)
            case ActivateWorker(worker, device):
                log.info("activating standby %s on %s", worker, device)
                try:
                    self._processes.activate(worker, device)
                except OSError as error:  # the next report says that it still stands by
                    log.error("standby %s cannot be activated: %s", worker, describe_os_error(error))
            case DrainWorker(worker, immediate):
                log.info("draining worker %s", worker)
                self._processes.signal(worker, signal.SIGUSR1 if immediate else signal.SIGTERM)
            case KillWorker(worker):
                log.info("killing worker %s", worker)
                self._processes.signal(worker, signal.SIGKILL)
            case DrainAll(after_s):
                self._drain_all_at = time.monotonic() + after_s

    def _start(self, order: StartWorker) -> None:
        worker, model, device, generation, standby = msgspec.structs.astuple(order)
        reason = self.models.unusable.get(model, "")
        if not reason and model not in self.models.settings.models:
            reason = f"models.{model} is not among the settings of this machine"
        if reason:
            self._fail_start(order, reason)
            return
        log.info("starting %s %s on %s", "standby" if standby else "worker", worker, device)
        try:
            command = self._commands.worker(self.models.settings, worker, model, device, standby=standby)
            self._processes.spawn(worker, model, device, *command, generation=generation, spare=standby)
        except OSError as error:
            self._fail_start(order, f"its worker process cannot be started: {error}")

    def _fail_start(self, order: StartWorker, reason: str) -> None:
        log.error("worker %s cannot start: %s", order.worker, reason)
        process = WorkerProcess(
            order.worker, order.model, order.device, 0, time.monotonic(), generation=order.generation
        )
        self._add_exit(Exit(process, time.monotonic(), _EXIT_CANNOT_START, "", reason))

    def drain_all(self, *, immediate: bool = False) -> None:
        """Drain every worker that is not draining, or all at once."""
        self._drain_all_at = None
        for child in self._processes.children():
            if immediate or child.drained_at is None:
                self._processes.signal(child.id, signal.SIGUSR1 if immediate else signal.SIGTERM)

    def kill_all(self) -> None:
        for child in self._processes.children():
            self._processes.signal(child.id, signal.SIGKILL)

    def on_new_controller(self) -> None:
        """A controller has started: what an earlier one ordered at its end does not count."""
        self._drain_all_at = None

    # ---- reports

    def poll(self) -> bool:
        """Look at every process. Return whether one has ended."""
        if self._drain_all_at is not None and time.monotonic() >= self._drain_all_at:
            log.info("draining all workers: the server has stopped")
            self.drain_all(immediate=True)
        self._processes.rotate_logs()
        _, exits = self._processes.poll()
        for ended in exits:
            status = "status unknown" if ended.status is None else f"status {ended.status}"
            log.info("worker %s has exited (%s)", ended.process.id, status)
            self._add_exit(ended)
        return bool(exits)

    def _add_exit(self, ended: Exit) -> None:
        self._exit_count += 1
        self._exits.append(_exit_record(self._exit_count, ended))
        del self._exits[:-_MAX_UNACKNOWLEDGED]

    def acknowledge_exits(self, up_to: int) -> None:
        self._exits = [each for each in self._exits if each.number > up_to]

    def exits(self) -> list[AgentExit]:
        """Return the oldest exits that are not acknowledged."""
        return self._exits[:MAX_EXITS]

    def processes(self) -> list[AgentProcess]:
        return [_process_record(child) for child in self._processes.children()]

    @property
    def unusable(self) -> Mapping[str, str]:
        """Why models cannot run here."""
        return self.models.unusable


def _is_valid(order: Order) -> bool:
    """Return whether the names in the order can be parts of paths and of command lines."""
    worker, device = getattr(order, "worker", "w"), getattr(order, "device", "cpu")
    return _WORKER_NAME.fullmatch(worker) is not None and is_local_name(device)


def _process_record(child: WorkerProcess) -> AgentProcess:
    now = time.monotonic()
    return AgentProcess(
        child.id,
        child.model,
        child.device,
        child.pid,
        max(now - child.started_at, 0.0),
        child.generation,
        None if child.drained_at is None else max(now - child.drained_at, 0.0),
        None if child.loaded_at is None else max(now - child.loaded_at, 0.0),
        child.spare,
    )


def _exit_record(number: int, ended: Exit) -> AgentExit:
    return AgentExit(
        number,
        _process_record(ended.process),
        max(time.monotonic() - ended.at, 0.0),
        ended.status,
        ended.tail[-8000:],
        ended.start_failure[:1000],
        ended.has_served,
        ended.machine_failed,
    )
