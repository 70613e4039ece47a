"""The controller's one loop: look, decide, plan, act. It never waits for a worker to start or to go."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence

from configs.load import ConfigError
from configs.paths import keys_file
from controller.autoscaler.autoscaler import Brain, Decided
from controller.balancer_client import BalancerHttpClient
from controller.launchers.local import BALANCER, LocalLauncher
from controller.runtime.balancer_supervisor import BalancerSupervisor, describe_exit
from controller.runtime.console import ServerConsole
from controller.runtime.control_plane import ControlPlaneAgent
from controller.runtime.executor import Executor
from controller.runtime.inventory import SetupError
from controller.runtime.log_throttle import LogThrottle
from controller.runtime.observe import WorkerTracker, observe
from controller.types import Child, Exit, Observation
from wire.snapshot import Snapshot

log = logging.getLogger("controller")

#: How often processes are looked at, so that a death is answered at once.
_LOOK_EVERY_S = 0.2
#: How often the plan is made anew between two decisions: back-offs end, timeouts pass, workers become ready.
_MEND_EVERY_S = 1.0
_WORKERS_GONE_BY_S = 8.0


class ControlLoop:
    """Owns every process of this instance."""

    def __init__(
        self,
        launcher: LocalLauncher,
        balancer: BalancerHttpClient,
        brain: Brain,
        clerk: ControlPlaneAgent,
        screen: ServerConsole,
        names: Mapping[str, str],
    ) -> None:
        """`names` are those of devices, for people."""
        self._launcher = launcher
        self._balancer = balancer
        self._brain = brain
        self._clerk = clerk
        self._screen = screen
        self._names = names
        self._hands = Executor(launcher, brain)
        self._keeper = BalancerSupervisor(launcher, clerk.settings.server.shutdown_s)
        self._hearing = WorkerTracker()
        self._children: Sequence[Child] = ()
        self._reload = False
        self._announced = False
        #: What has been logged of each model, so that it is not said again at every look.
        self._told: dict[str, tuple[int, int]] = {}
        self._obstacles = LogThrottle()

    async def run(self) -> None:
        """Serve until cancelled. Raises `BalancerStartupError`."""
        mend_at = 0.0
        while True:
            now = time.monotonic()
            if self._reload:
                self._reload = False
                self._read_again()
            if self._look(now) or now >= mend_at:
                await self._reconcile(now)
                mend_at = now + (_MEND_EVERY_S if self._announced else _LOOK_EVERY_S)
            await asyncio.sleep(_LOOK_EVERY_S)

    def reload_soon(self) -> None:
        """Read the configuration again at the next look."""
        self._reload = True

    def _read_again(self) -> None:
        try:
            self._clerk.reload()
        except (ConfigError, SetupError, OSError) as error:
            log.error("the configuration is refused, and nothing has changed:\n%s", error)

    # ---- look

    def _look(self, now: float) -> bool:
        """Take in what the launcher sees; whether something has died."""
        children, exits = self._launcher.poll()
        self._children = [self._known(child) for child in children]
        for ended in exits:
            if ended.child.id == BALANCER:
                self._keeper.died(ended)
            else:
                self._worker_died(dataclasses.replace(ended, child=self._known(ended.child)))
        self._keeper.have(next((child for child in children if child.id == BALANCER), None), now)
        return bool(exits)

    def _known(self, child: Child) -> Child:
        return dataclasses.replace(child, ready_at=self._hearing.first.get(child.id))

    def _worker_died(self, ended: Exit) -> None:
        self._hearing.forget(ended.child.id)
        crashed = self._brain.died(ended)
        if not crashed:
            log.info("worker %s is gone (%s)", ended.child.id, describe_exit(ended))
            return
        if ended.child.spare:
            log.error("spare %s died (%s); the end of its log:\n%s", ended.child.id, describe_exit(ended), ended.tail)
            return
        crashes = self._brain.models[ended.child.model].crashes
        when = f"crash {crashes.count} in a row" if crashes.count else "after healthy service"
        tail = f"; the end of its log:\n{ended.tail}" if ended.status not in (None, -9, -15) else ""
        log.error(
            "worker %s on %s died (%s), %s%s", ended.child.id, ended.child.device, describe_exit(ended), when, tail
        )

    # ---- decide, plan, act

    async def _reconcile(self, now: float) -> None:
        snapshot = await self._balancer.snapshot()
        if snapshot is not None:
            self._hear(snapshot, now)
        self._clerk.look()
        seen: dict[str, Observation] = {}

        def look(name: str) -> Observation:
            observed = observe(name, self._children, snapshot, self._hearing, now)
            seen[name] = dataclasses.replace(observed, unix_s=time.time())
            return seen[name]

        thought = self._brain.think(look, now)
        self._clerk.note(thought.decided)
        for decided in thought.decided:
            self._tell(decided)
        for action in thought.plan.actions:
            self._hands.act(action)
        for model, obstacle in self._obstacles.news(thought.plan.obstacles, now).items():
            log.warning("%s: %s", model, obstacle)
        self._announce(snapshot)
        # What was ordered is answered at once: somebody waits for it.
        while snapshot is not None and await self._clerk.exchange(seen, thought.plan, self._names):
            pass

    def _hear(self, snapshot: Snapshot, now: float) -> None:
        new = set(self._hearing.listen(snapshot, now))
        for child in self._children:
            if child.id in new:
                self._screen.line(f"worker {child.id} ready on {child.device} after {now - child.started_at:.1f} s")

    def _tell(self, decided: Decided) -> None:
        """Log a decision once, with what it rests on. What changes nothing is told in detail only."""
        model, seen, decision = decided.model, decided.seen, decided.decision
        if decided.failure:
            log.error("%s: %s\n%s", model, decision.reason, decided.failure)
            return
        if not decision.valid:
            log.debug("%s: no decision: %s", model, decision.reason)
            return
        inputs = ", ".join(f"{name} {value:.4g}" for name, value in decision.inputs.items())
        reason = f"{decision.reason}{inputs and f' [{inputs}]'}"
        change = (seen.provisioned, decision.desired)
        if decision.desired == seen.provisioned:
            # Said once: what there is when a model is first seen may have been left by an earlier controller.
            level = logging.DEBUG if model in self._told else logging.INFO
            log.log(level, "%s: stays at %d workers: %s", model, decision.desired, reason)
        else:
            level = logging.DEBUG if change == self._told.get(model) else logging.INFO
            log.log(level, "%s: %d -> %d workers: %s", model, seen.provisioned, decision.desired, reason)
        self._told[model] = change

    def _announce(self, snapshot: Snapshot | None) -> None:
        """Tell the user once when every model has its first worker, or needs none until somebody asks."""
        if self._announced:
            return
        if snapshot is None:
            self._screen.busy("starting the balancer ...")
            return
        self._keeper.served = True
        ready = {worker.model for worker in snapshot.workers if worker.slots}
        if ready >= {name for name, model in self._brain.models.items() if model.limits.min_workers > 0}:
            self._announced = True
            settings, model = self._clerk.settings, next(iter(self._brain.models))
            keyed = keys_file(settings.data_dir, settings.access.keys_file).exists()
            self._screen.ready(self._balancer.url, model, certificate=settings.server.tls_cert, keyed=keyed)
        else:
            workers = [child for child in self._children if child.id != BALANCER and not child.spare]
            starting = [f"{child.id} on {child.device}" for child in workers]
            self._screen.busy(f"loading {', '.join(starting)} ...")

    # ---- stop

    async def shutdown(self, hurry: asyncio.Event) -> None:
        """End everything within 10 s: the balancer first, then the workers; at once when `hurry` is set."""
        began = time.monotonic()
        self._screen.busy(None)
        self._screen.line("stopping ...")
        with contextlib.suppress(OSError):
            self._clerk.close()
        self._launcher.drain(BALANCER)
        balancer_by = began + self._clerk.settings.server.shutdown_s + 1.0
        while time.monotonic() < balancer_by and not hurry.is_set() and BALANCER in self._left():
            await asyncio.sleep(0.05)
        for worker in self._left() - {BALANCER}:
            self._launcher.drain(worker, hurry=True)
        while time.monotonic() < began + _WORKERS_GONE_BY_S and not hurry.is_set() and self._left():
            await asyncio.sleep(0.05)
        why = "told to stop at once" if hurry.is_set() else "it did not go by itself"
        for name in self._left():
            log.warning("killing %s: %s", name, why)
            self._launcher.kill(name)
        while self._left() and time.monotonic() < began + _WORKERS_GONE_BY_S + 1.5:
            await asyncio.sleep(0.02)
        self._screen.line("stopped")

    def _left(self) -> set[str]:
        return {child.id for child in self._launcher.poll().children}
