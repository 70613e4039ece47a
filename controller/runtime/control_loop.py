"""The control loop: observe, decide, apply the plan, report. It never waits for a worker to start or to stop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from configs.data_dir import DataDirCheck
from configs.load import ConfigError
from configs.paths import keys_file
from controller.autoscaler.autoscaler import Autoscaler, TickResult
from controller.balancer_client import SNAPSHOT, BalancerHttpClient
from controller.launchers.local import BALANCER, LocalLauncher
from controller.launchers.machines import MachinesLauncher
from controller.planning.machines import Machine
from controller.runtime.balancer_supervisor import BalancerSupervisor, describe_exit
from controller.runtime.console import ServerConsole
from controller.runtime.control_plane import ControlPlaneAgent
from controller.runtime.decision_log import LogThrottle
from controller.runtime.executor import Executor, only_kills
from controller.runtime.observe import WorkerTracker, count_starting
from controller.runtime.shutdown import stop_processes
from controller.types import Observation, Replica
from host.types import Exit, SetupError, WorkerProcess
from wire.snapshot import Snapshot

log = logging.getLogger("controller")

#: Interval between two polls of the processes. An exit starts the next tick at once.
_POLL_INTERVAL_S = 0.2
#: Interval between two ticks. Back-offs, timeouts and newly ready workers change the plan between two decisions.
_TICK_INTERVAL_S = 1.0
#: Decisions that take longer are logged.
_SLOW_DECISION_S = 1.0


class _Observed(NamedTuple):
    """What a tick starts from. There is no snapshot if the balancer does not answer."""

    snapshot: Snapshot | None
    models: Mapping[str, Observation]
    machines: Sequence[Machine]


class ControlLoop:
    """Owns every process of this instance."""

    def __init__(
        self,
        launcher: LocalLauncher,
        balancer: BalancerHttpClient,
        autoscaler: Autoscaler,
        control_plane: ControlPlaneAgent,
        console: ServerConsole,
        max_starting: int,
        data_dir: DataDirCheck,
        machines: MachinesLauncher,
    ) -> None:
        """`max_starting`: how many processes start at once on a machine.

        `launcher` runs the balancer, and the workers of this machine; `machines` all workers.
        """
        self._launcher = launcher
        self._balancer = balancer
        self._autoscaler = autoscaler
        self._control_plane = control_plane
        self._data_dir = data_dir
        self._machines = machines
        self._console = console
        self._executor = Executor(machines, autoscaler, max_starting)
        self._supervisor = BalancerSupervisor(launcher, control_plane.settings.server.shutdown_s)
        self._workers = WorkerTracker()
        self._children: Sequence[WorkerProcess] = ()
        self._created_at = time.monotonic()
        self._reload_requested = False
        self._is_ready = False
        self._data_dir_throttle = LogThrottle()
        #: Why nothing can be started now.
        self._data_dir_problem: str | None = None

    async def run(self) -> None:
        """Serve until cancelled. Raises `BalancerStartupError`."""
        next_tick = maintenance_by = 0.0
        while True:
            if self._reload_requested:
                self._reload_requested = False
                self._reload()
            is_due = time.monotonic() >= next_tick
            if is_due and self._machines.has_remote:
                await self._machines.exchange(self._balancer)
            now = time.monotonic()  # no event of the exchange is later
            self._children, exits = self._machines.poll()
            for ended in exits:
                self._on_exit(ended)
                is_due = True
            if not any(child.id == BALANCER and child.drained_at is None for child in self._children):
                self._restart_balancer(now)
            if is_due:
                await self._tick(now)
                next_tick = now + (_TICK_INTERVAL_S if self._is_ready else _POLL_INTERVAL_S)
            if not is_due or now >= maintenance_by:  # preferably between two ticks
                self._maintain(now)
                maintenance_by = now + _TICK_INTERVAL_S
            await asyncio.sleep(_POLL_INTERVAL_S)

    def _maintain(self, now: float) -> None:
        """Check the data directory, and keep what is in it."""
        self._data_dir_problem = problem = self._data_dir.problem()
        messages = {} if problem is None else {"": ("removed", problem)}
        for text in self._data_dir_throttle.filter(messages, now).values():
            log.error("nothing is started or drained: %s. What runs goes on; restart the server", text)
        if problem is None:
            self._control_plane.save_if_due()
        self._launcher.rotate_logs()

    def request_reload(self) -> None:
        self._reload_requested = True

    async def shutdown(self, immediate: asyncio.Event) -> None:
        """End everything within 10 s; at once when `immediate` is set."""
        self._control_plane.close()
        shutdown_s = self._control_plane.settings.server.shutdown_s
        await self._machines.leave_agents(self._balancer, shutdown_s)
        await stop_processes(self._machines, self._console, shutdown_s, immediate)

    async def _tick(self, now: float) -> None:
        observed = await self._observe(now)
        result = self._decide(observed, now)
        await self._apply(result)
        await self._report(observed.snapshot, result, now)

    def _decide(self, observed: _Observed, now: float) -> TickResult:
        """Decide and plan. Custom policies may take long; meanwhile the loop stands still."""
        started_at = time.monotonic()
        result = self._autoscaler.tick(observed.models, now, observed.machines)
        took_s = time.monotonic() - started_at
        custom = [model.scaling.policy for model in self._autoscaler.models.values() if ":" in model.scaling.policy]
        if custom and took_s > _SLOW_DECISION_S:
            text = "no worker was replaced and no command executed"
            log.warning("decisions took %.1f s, in which %s; custom policies: %s", took_s, text, ", ".join(custom))
        return result

    async def _observe(self, now: float) -> _Observed:
        snapshot = await self._balancer.call(SNAPSHOT)
        machines: Sequence[Machine] = ()
        if self._machines.has_remote:
            machines = self._machines.machines()
            self._control_plane.update_machines(machines)
        models = self._workers.observe(self._autoscaler.models, self._children, snapshot, now, time.time())
        replicas = (replica for observed in models.values() for replica in observed.replicas)
        if new := [replica for replica in replicas if replica.process.ready_at == now]:
            self._log_ready_workers(new)
        return _Observed(snapshot, models, machines)

    async def _apply(self, result: TickResult) -> None:
        if (cluster := self._machines.cluster) is not None:  # it grows and shrinks with the desired numbers
            cluster.request_workers(sum(demand.decision.desired for demand in result.demands))
        plan = result.plan if self._data_dir_problem is None else only_kills(result.plan)
        if plan.actions:
            self._executor.apply(plan, count_starting(demand.observation for demand in result.demands))
            await self._machines.exchange(self._balancer)

    async def _report(self, snapshot: Snapshot | None, result: TickResult, now: float) -> None:
        if not self._is_ready:
            self._show_progress(snapshot)
        await self._control_plane.report(result, now, is_connected=snapshot is not None)

    def _reload(self) -> None:
        try:
            self._control_plane.reload()
        except (ConfigError, SetupError, OSError) as error:
            log.error("the configuration is rejected, and nothing has changed:\n%s", error)

    # ---- processes

    def _restart_balancer(self, now: float) -> None:
        """Start the balancer, or end the one that drains."""
        balancer = next((child for child in self._children if child.id == BALANCER), None)
        if balancer is not None or self._data_dir_problem is None:
            self._supervisor.ensure_running(balancer, now)

    def _on_exit(self, ended: Exit) -> None:
        if ended.process.id == BALANCER:
            self._supervisor.on_exit(ended)
            return
        ended = dataclasses.replace(ended, process=self._workers.forget(ended.process))
        child, how = ended.process, describe_exit(ended)
        if not self._autoscaler.on_exit(ended):
            text = "worker %s counts as lost: %s" if ended.lost_reason else "worker %s has exited (%s)"
            log.info(text, child.id, how)
            return
        if child.spare:
            outcome = f"cannot start: {ended.start_failure}" if ended.start_failure else f"died ({how}):\n{ended.tail}"
            log.error("standby %s %s", child.id, outcome)
            return
        crashes = self._autoscaler.models[child.model].crashes
        if ended.start_failure:
            again_s = max(crashes.retry_at - ended.at, 0.0)
            reason = f"cannot start: {ended.start_failure}; next try in {again_s:.0f} s"
            log.error("worker %s on %s %s (failure %d)", child.id, child.device, reason, crashes.count)
            return
        when = f"crash {crashes.count} in a row" if crashes.count else "after healthy service"
        tail = f"; the end of its log:\n{ended.tail}" if ended.status not in (None, -9, -15) else ""
        log.error("worker %s on %s died (%s), %s%s", child.id, child.device, how, when, tail)

    # ---- console

    def _log_ready_workers(self, new: Sequence[Replica]) -> None:
        for replica in new:
            child = replica.process
            is_own = child.started_at >= self._created_at  # else an earlier controller has started it
            # The worker's own time: one of a machine that was cut off has started long before it appears again.
            after = f" after {replica.started_in_s:.1f} s" if is_own else ""
            self._console.line(f"worker {child.id} ready on {child.device}{after}")

    def _show_progress(self, snapshot: Snapshot | None) -> None:
        """Print once that the server is ready: every model with `min_workers` above 0 has its first worker."""
        if snapshot is None:
            self._console.busy("starting the balancer ...")
            return
        self._supervisor.mark_served()
        ready = {worker.model for worker in snapshot.workers if worker.slots}
        if ready >= {name for name, model in self._autoscaler.models.items() if model.limits.min_workers > 0}:
            self._is_ready = True
            settings = self._control_plane.settings
            # The example of a call needs an input of the engine's own type, which is not known here.
            model = min(self._autoscaler.models, key=lambda name: settings.models[name].task == "call")
            keyed = keys_file(settings.data_dir, settings.access.keys_file).exists()
            task = settings.models[model].task
            self._console.ready(self._balancer.url, model, certificate=settings.server.tls_cert, keyed=keyed, task=task)
        else:
            workers = [child for child in self._children if child.id != BALANCER and not child.spare]
            self._console.busy(f"loading {', '.join(f'{child.id} on {child.device}' for child in workers)} ...")
