"""The controller's one loop: look, decide, plan, act. It never waits for a worker to start or to go."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import Sequence

from configs.cli import EXIT_USAGE
from configs.schema import Settings
from controller.brain import Brain, Decided
from controller.launchers.local import BALANCER, LocalLauncher
from controller.observe import Balancer, Hearing, observe
from controller.plan import DRAIN_GRACE_S, after_exit, one_more
from controller.replica import Action, Child, Crashes, Drain, Exit, Kill, Start
from controller.screen import Screen
from wire.snapshot import Snapshot

log = logging.getLogger("controller")

#: How often processes are looked at, so that a death is answered at once.
_LOOK_EVERY_S = 0.2
#: How often the plan is made anew between two decisions: back-offs end, timeouts pass, workers become ready.
_MEND_EVERY_S = 1.0
_WORKERS_GONE_BY_S = 8.0


class BalancerRefused(Exception):
    """The balancer cannot start at all; the text is the end of its log."""


class Controller:
    """Owns every process of this instance."""

    def __init__(
        self,
        settings: Settings,
        launcher: LocalLauncher,
        balancer: Balancer,
        brain: Brain,
        screen: Screen,
    ) -> None:
        self._settings = settings
        self._launcher = launcher
        self._balancer = balancer
        self._brain = brain
        self._screen = screen
        self._hearing = Hearing()
        self._children: Sequence[Child] = ()
        self._balancer_crashes = Crashes()
        self._announced = False
        #: What has been logged of each model, so that it is not said again at every look.
        self._told: dict[str, tuple[int, int]] = {}
        self._obstacles: dict[str, str] = {}

    async def run(self) -> None:
        """Serve until cancelled. Raises `BalancerRefused`."""
        mend_at = 0.0
        while True:
            now = time.monotonic()
            if self._look(now) or now >= mend_at:
                await self._reconcile(now)
                mend_at = now + (_MEND_EVERY_S if self._announced else _LOOK_EVERY_S)
            await asyncio.sleep(_LOOK_EVERY_S)

    # ---- look

    def _look(self, now: float) -> bool:
        """Take in what the launcher sees; whether something has died."""
        children, exits = self._launcher.poll()
        self._children = [self._known(child) for child in children]
        for ended in exits:
            if ended.child.id == BALANCER:
                self._balancer_died(ended)
            else:
                self._worker_died(dataclasses.replace(ended, child=self._known(ended.child)))
        self._have_balancer(next((child for child in children if child.id == BALANCER), None), now)
        return bool(exits)

    def _have_balancer(self, child: Child | None, now: float) -> None:
        """Start it if there is none; end an adopted one that was told to go and does not."""
        if child is not None:
            patience_s = self._settings.server.shutdown_s + DRAIN_GRACE_S
            if child.drained_at is not None and now - child.drained_at > patience_s:
                self._launcher.kill(BALANCER)
        elif now >= self._balancer_crashes.retry_at:
            try:
                self._launcher.start_balancer()
            except OSError as error:
                self._balancer_crashes = one_more(self._balancer_crashes, now)
                log.error("the balancer cannot be started: %s", error)

    def _known(self, child: Child) -> Child:
        return dataclasses.replace(child, ready_at=self._hearing.first.get(child.id))

    def _balancer_died(self, ended: Exit) -> None:
        if ended.child.drained_at is not None:
            log.info("the balancer is gone (%s), as it was told; starting it again", _how(ended))
            return
        if ended.status == EXIT_USAGE and not self._announced:
            raise BalancerRefused(ended.tail)
        lived = ended.at - ended.child.started_at
        serving = dataclasses.replace(ended.child, ready_at=ended.child.started_at)
        self._balancer_crashes, _ = after_exit(self._balancer_crashes, dataclasses.replace(ended, child=serving))
        log.error("the balancer died (%s) after %.0f s; starting it again\n%s", _how(ended), lived, ended.tail)

    def _worker_died(self, ended: Exit) -> None:
        self._hearing.forget(ended.child.id)
        crashed = self._brain.died(ended)
        if not crashed:
            log.info("worker %s is gone (%s)", ended.child.id, _how(ended))
            return
        crashes = self._brain.models[ended.child.model].crashes
        when = f"crash {crashes.count} in a row" if crashes.count else "after healthy service"
        tail = f"; the end of its log:\n{ended.tail}" if ended.status not in (None, -9, -15) else ""
        log.error("worker %s on %s died (%s), %s%s", ended.child.id, ended.child.device, _how(ended), when, tail)

    # ---- decide, plan, act

    async def _reconcile(self, now: float) -> None:
        snapshot = await self._balancer.snapshot()
        if snapshot is not None:
            self._hear(snapshot, now)
        thought = self._brain.think(lambda name: observe(name, self._children, snapshot, self._hearing, now), now)
        for decided in thought.decided:
            self._tell(decided)
        for action in thought.plan.actions:
            self._act(action)
        for model, obstacle in thought.plan.obstacles.items():
            if model not in self._obstacles:
                log.warning("%s: %s", model, obstacle)
        self._obstacles = thought.plan.obstacles
        self._announce(snapshot)

    def _hear(self, snapshot: Snapshot, now: float) -> None:
        new = set(self._hearing.listen(snapshot, now))
        for child in self._children:
            if child.id in new:
                self._screen.line(f"worker {child.id} ready on {child.device} after {now - child.started_at:.1f} s")

    def _tell(self, decided: Decided) -> None:
        """Log a decision once."""
        model, seen, decision = decided.model, decided.seen, decided.decision
        if not decision.valid:
            log.debug("%s: no decision: %s", model, decision.reason)
            return
        change = (seen.provisioned, decision.desired)
        if decision.desired == seen.provisioned:
            # Said once: what there is when a model is first seen may have been left by an earlier controller.
            level = logging.DEBUG if model in self._told else logging.INFO
            log.log(level, "%s: stays at %d workers: %s", model, decision.desired, decision.reason)
        elif change != self._told.get(model):
            log.info("%s: %d -> %d workers: %s", model, seen.provisioned, decision.desired, decision.reason)
        self._told[model] = change

    def _act(self, action: Action) -> None:
        match action:
            case Start(model, device, reason):
                name = f"{model}-{secrets.token_hex(3)}"
                log.info("starting worker %s on %s: %s", name, device, reason)
                try:
                    self._launcher.start(name, model, device)
                except OSError as error:
                    self._brain.failed_to_start(model, time.monotonic())
                    log.error("worker %s cannot be started: %s", name, error)
            case Drain(worker, reason):
                log.info("draining worker %s: %s", worker, reason)
                self._launcher.drain(worker)
            case Kill(worker, reason):
                log.error("killing worker %s: %s", worker, reason)
                self._launcher.kill(worker)

    def _announce(self, snapshot: Snapshot | None) -> None:
        """Tell the user once when every model has its first worker."""
        if self._announced:
            return
        if snapshot is None:
            self._screen.busy("starting the balancer ...")
            return
        ready = {worker.model for worker in snapshot.workers if worker.slots}
        if ready >= set(self._brain.models):
            self._announced = True
            self._screen.ready(self._balancer.url, next(iter(self._brain.models)))
        else:
            starting = [f"{child.id} on {child.device}" for child in self._children if child.id != BALANCER]
            self._screen.busy(f"loading {', '.join(starting)} ...")

    # ---- stop

    async def shutdown(self, hurry: asyncio.Event) -> None:
        """End everything within 10 s: the balancer first, then the workers; at once when `hurry` is set."""
        began = time.monotonic()
        self._screen.busy(None)
        self._screen.line("stopping ...")
        self._launcher.drain(BALANCER)
        balancer_by = began + self._settings.server.shutdown_s + 1.0
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


def _how(ended: Exit) -> str:
    """How a process ended, in words."""
    if ended.status is None:
        return "exit status unknown"
    return f"signal {-ended.status}" if ended.status < 0 else f"exit status {ended.status}"
