"""Runs the agent: it reports the machine to the server, and carries out orders until a signal."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import secrets
import signal
import sys
import time
from pathlib import Path

import msgspec
import psutil
from filelock import FileLock, Timeout
from setproctitle import setproctitle

from configs.cli import EXIT_USAGE
from configs.files import atomic_write, describe_os_error
from configs.paths import controller_pid_file, run_dir
from configs.settings import Settings
from host.resources import available_memory
from host.types import SetupError
from wire.agents import AgentAck, AgentHello, AgentOrders, AgentReject, AgentReport, FileList, FilePart, ToAgent
from wire.curve import AgentKey
from wire.messages import PROTOCOL
from worker.agent.devices import MachineDevices
from worker.agent.head_connection import HeadConnection
from worker.agent.model_paths import folder_name
from worker.agent.order_log import OrderLog, OrderPosition
from worker.agent.weight_fetch import WeightFetch
from worker.agent.worker_runner import WorkerRunner

log = logging.getLogger("agent")

_POLL_S = 0.2
#: Pause after files that were fetched could not be used, such as on a full disk.
_LOOK_AGAIN_S = 10.0
#: After a second signal.
_KILL_AFTER_S = 8.0


class AgentRefused(Exception):
    """The server does not accept this agent. The text says why."""


class Agent:
    """One loop: messages, processes, reports. Nothing in it waits."""

    def __init__(self, settings: Settings, devices: MachineDevices, runner: WorkerRunner, head: HeadConnection) -> None:
        self._settings = settings
        self._devices = devices
        self._runner = runner
        self._head = head
        self._position_file = run_dir(settings.data_dir) / "orders.json"
        self._orders = OrderLog(_read_position(self._position_file))
        self._session = secrets.token_hex(8)
        self._heartbeat_s = settings.workers.heartbeat_s
        self._report_at = self._poll_at = 0.0
        #: When to look for files that have been fetched.
        self._look_at = math.inf
        self._has_head = False
        self._silence_logged = False
        self._has_drained = False
        self._signals = 0
        self._kill_at = 0.0
        self._fetch = WeightFetch(runner.fetched, int(settings.agent.max_fetched_bytes), head.send)
        self._fetch_missing()

    def on_signal(self, signum: int, frame: object) -> None:
        """Stop: the first signal drains the workers, the second one returns their tasks at once."""
        del signum, frame
        self._signals += 1

    def run(self) -> None:
        """Serve until a signal. Raises `AgentRefused`."""
        stopping = 0
        while True:
            if self._head.ensure_open():
                self._say_hello()
            for message, data in self._head.receive(_POLL_S):
                self._on_message(message, data)
            changed = self._poll_processes()
            if not stopping and self._has_new_models():
                self._fetch_missing()
                changed = True
            self._check_head()
            if self._signals > stopping:
                stopping = self._signals
                self._stop()
                changed = True
            if stopping and not self._runner.processes():
                self._report()
                return
            if stopping and time.monotonic() > self._kill_at:
                self._runner.kill_all()
            if changed or time.monotonic() >= self._report_at:
                self._report()

    def _has_new_models(self) -> bool:
        """Fetch files. Return whether the models of those that are complete can be used."""
        now = time.monotonic()
        if self._fetch.run() is not None:
            self._look_at = now
        if now < self._look_at:
            return False
        is_done = self._runner.look_again()
        self._look_at = math.inf if is_done else now + _LOOK_AGAIN_S
        return is_done

    def _poll_processes(self) -> bool:
        """Look at the processes, but not at every message. Return whether one has ended."""
        if time.monotonic() < self._poll_at:
            return False
        self._poll_at = time.monotonic() + _POLL_S / 2
        return self._runner.poll()

    def _stop(self) -> None:
        immediate = self._signals > 1
        log.info("stopping: the workers %s", "return their tasks" if immediate else "are drained")
        self._runner.drain_all(immediate=immediate)
        limit = _KILL_AFTER_S if immediate else self._runner.models.settings.workers.drain_timeout_s + _KILL_AFTER_S
        self._kill_at = time.monotonic() + limit

    # ---- the head

    def _say_hello(self) -> None:
        memory = int(psutil.virtual_memory().total)
        self._head.send(AgentHello(PROTOCOL, _version(), self._session, self._devices.devices, memory))
        self._report_at = 0.0
        self._fetch.on_reconnect()

    def _fetch_missing(self) -> None:
        self._fetch.want({model: folder_name(model) for model in self._runner.models.absent})

    def _report(self) -> None:
        self._report_at = time.monotonic() + self._heartbeat_s
        models, position = self._runner.models, self._orders.position
        unusable, states = self._runner.unusable, self._fetch.states
        self._head.send(
            AgentReport(
                position.epoch,
                position.executed,
                self._runner.digest,
                self._runner.processes(),
                self._runner.exits(),
                sorted(models.present),
                {name: f"{reason}; {states[name]}" if name in states else reason for name, reason in unusable.items()},
                list(self._devices.readings),
                available_memory(),
                self._signals > 0,
            )
        )

    def _check_head(self) -> None:
        """Without a head for `workers.orphan_after_s`, drain everything: standby workers do not leave by themselves."""
        silent_s = self._head.silence_s(time.monotonic())
        if silent_s > self._runner.orphan_after_s and not self._has_drained:
            self._has_drained = True
            log.error("no message of the server for %.0f s: the workers are drained; trying on", silent_s)
            self._runner.drain_all()
        if silent_s > 3 * self._heartbeat_s + 5.0 and not self._silence_logged:
            self._silence_logged = True
            if self._has_head:
                log.warning("the server does not answer; the workers run on")
            else:
                log.warning(
                    "no answer from %s: does a server with that workers.listen run? trying on", self._head.address
                )
            self._has_head = False

    def _on_message(self, message: ToAgent, data: bytes) -> None:
        match message:
            case AgentAck(heartbeat_s):
                self._heartbeat_s = heartbeat_s
                self._has_drained = self._silence_logged = False
                if not self._has_head:
                    self._has_head = True
                    log.info("connected to the server")
            case AgentReject(reason, fatal):
                if fatal:
                    raise AgentRefused(reason)
                self._say_hello()
            case AgentOrders():
                self._on_orders(message)
            case FileList():
                self._fetch.on_list(message)
            case FilePart():
                self._fetch.on_part(message, data)

    def _on_orders(self, message: AgentOrders) -> None:
        if self._orders.is_new_controller(message):
            self._runner.on_new_controller()
        if message.session == self._session:
            self._runner.acknowledge_exits(message.exits_received)
        if message.settings is not None and message.settings.digest != self._runner.digest:
            try:
                self._runner.update_settings(message.settings)
                self._fetch_missing()
            except (ValueError, OSError) as error:
                log.error("the settings of the server are not used: %s", error)
                return
        if self._signals:
            return
        for order in self._orders.take(message):
            self._runner.execute(order)
        try:
            atomic_write(self._position_file, msgspec.json.encode(self._orders.position))
        except OSError as error:  # orders may be repeated after a restart, which changes nothing
            log.warning("%s", describe_os_error(error))
        self._report_at = 0.0


def run_agent(settings: Settings, address: str, key: AgentKey) -> int:
    """Serve until a signal. Return the exit status: 0 stopped, 2 refused or not usable."""
    setproctitle("muster agent")
    try:
        lock = FileLock(run_dir(settings.data_dir) / "controller.lock")
        lock.acquire(timeout=0)
        with lock:
            return _run_locked(settings, address, key)
    except Timeout:
        print(f"an agent or a controller runs with --data-dir {settings.data_dir.resolve()} already", file=sys.stderr)
    except OSError as error:
        print(f"data_dir {settings.data_dir} cannot be used: {describe_os_error(error)}", file=sys.stderr)
    except SetupError as error:
        print(f"cannot start: {error}", file=sys.stderr)
    return EXIT_USAGE


def _run_locked(settings: Settings, address: str, key: AgentKey) -> int:
    # Standby workers end when this process is gone and no other takes its place.
    atomic_write(controller_pid_file(settings.data_dir), str(os.getpid()).encode("ascii"))
    devices = MachineDevices(settings)
    runner = WorkerRunner(settings, address, key.of_workers())
    names = ", ".join(device.name for device in devices.devices)
    log.info("offering %s to %s; logs: %s", names or "no device", address, settings.data_dir.resolve() / "logs")
    if adopted := runner.adopt():
        log.info("adopting %s, left by an earlier agent", ", ".join(child.id for child in adopted))
    head = HeadConnection(address, key.of_agent())
    agent = Agent(settings, devices, runner, head)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, agent.on_signal)
    try:
        agent.run()
    except AgentRefused as error:
        log.error("the server refuses this agent, and the workers are drained: %s", error)
        runner.drain_all()  # nobody would stop them
        return EXIT_USAGE
    finally:
        head.close()
    return 0


def _read_position(file: Path) -> OrderPosition:
    try:
        return msgspec.json.decode(file.read_bytes(), type=OrderPosition)
    except (OSError, msgspec.MsgspecError):
        return OrderPosition()


def _version() -> str:
    try:
        return importlib.metadata.version("muster")
    except importlib.metadata.PackageNotFoundError:
        return ""
