"""Taking orders and telling how things stand: the controller's side of `/internal/controller`, and its files in `run/`.

What people ordered, the number of the last decision, and what policies remember outlive this process.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from configs.load import ConfigError
from configs.paths import run_dir
from configs.settings import Settings
from controller.autoscaler.autoscaler import Brain, Decided, Model
from controller.autoscaler.overrides import Standing, Wrong, held, in_force, obey, renew
from controller.balancer_client import BalancerHttpClient
from controller.config_diff import Change, change, generation
from controller.launchers.local import LocalLauncher
from controller.planning.plan import Plan
from controller.planning.rolling_update import Rule
from controller.runtime.inventory import SetupError
from controller.runtime.report import DecisionLog, ReportInput, clip, report
from controller.types import Limits, Observation
from wire.scaling import Command, CommandResult, PendingCommand, Reload

log = logging.getLogger("controller")

#: How often what policies remember is written, at most: it changes with every decision.
_SAVE_EVERY_S = 5.0
#: Decisions between two savings, at most: a successor of one that was killed counts on from beyond them.
_UNSAVED_DECISIONS = 1000
#: Orders whose outcome is told again as long as the balancer asks.
_MOST_OBEYED = 200


class _Saved(msgspec.Struct, frozen=True):
    """What is on disk beside the brain's own memory."""

    standing: Standing
    #: No decision has a higher number.
    last_decision: int
    #: Unix seconds.
    at: float


class ControlPlaneAgent:
    """Keeps what people have ordered, and does what of it can be done at once."""

    def __init__(
        self,
        settings: Settings,
        brain: Brain,
        balancer: BalancerHttpClient,
        launcher: LocalLauncher,
        read: Callable[[], Settings],
        build_models: Callable[[Settings], Mapping[str, Model]],
    ) -> None:
        """`read` reads the configuration again and raises `ConfigError`; `build_models` raises `SetupError`."""
        self.settings = settings
        self._brain = brain
        self._balancer = balancer
        self._launcher = launcher
        self._read = read
        self._models_of = build_models
        self._folder = run_dir(settings.data_dir)
        self._began = time.monotonic()
        self._saved_at = self._began
        self._standing = Standing()
        self._chronicle = DecisionLog()
        #: The newest decision that the balancer has, and what has become of its orders.
        self._decisions_to = 0
        self._obeyed: dict[str, CommandResult] = {}
        self._recall()
        self._put_in_force()

    # ---- between two looks

    def look(self) -> None:
        """See whether what is held has ended."""
        standing = in_force(self._standing, self._limits(), time.time())
        if standing != self._standing:
            for model in self._standing.holds.keys() - standing.holds.keys():
                log.info("%s: no longer held: its policy decides again", model)
            self._standing = standing
            self._put_in_force()
            self._save()

    def note(self, decided: Sequence[Decided]) -> None:
        """Keep what was decided."""
        wall = time.time() - time.monotonic()
        for one in decided:
            self._chronicle.add(one, wall + one.at)
        if time.monotonic() >= self._saved_at + _SAVE_EVERY_S and decided:
            self._save()

    async def exchange(self, seen: Mapping[str, Observation], plan: Plan, names: Mapping[str, str]) -> bool:
        """Report, and do what is ordered; whether anything was."""
        now, wall = time.monotonic(), time.time()
        view = ReportInput(self._brain, seen, plan, self._standing, names, now, wall, self._began)
        content = report(view, self._chronicle, self._decisions_to, list(self._obeyed.values()))
        answer = await self._balancer.exchange(content)
        if answer is None:
            return False
        self._decisions_to = answer.last_decision
        wanted = {numbered.id for numbered in answer.commands}
        # What the balancer asks for no more, it has been told.
        self._obeyed = {number: done for number, done in self._obeyed.items() if number in wanted}
        new = [numbered for numbered in answer.commands if numbered.id not in self._obeyed][:_MOST_OBEYED]
        for numbered in new:
            self._obeyed[numbered.id] = self._do(numbered)
        return bool(new)

    def close(self) -> None:
        """Keep all for a successor."""
        self._save(beyond=0)

    # ---- orders

    def _do(self, numbered: PendingCommand) -> CommandResult:
        """Obey one order; what came of it."""
        order = numbered.command
        log.info("ordered: %s", _words(order))
        try:
            if isinstance(order, Reload):
                changed = self.reload(order.models)
                rolling = [*changed.rolling, *(f"the workers of {name}" for name in order.models)]
                return CommandResult(numbered.id, "", None, changed.applied, tuple(rolling), changed.needs_restart)
            self._standing = obey(self._standing, order, self._limits(), time.time())
        except Wrong as wrong:
            return CommandResult(numbered.id, str(wrong), wrong.param)
        except (ConfigError, SetupError) as error:
            return CommandResult(numbered.id, clip(f"the configuration is refused, and nothing has changed:\n{error}"))
        except OSError as error:
            return CommandResult(
                numbered.id, f"the new configuration cannot be written, and nothing has changed: {error}"
            )
        self._put_in_force()
        self._save()
        return CommandResult(numbered.id, applied=(_words(order),))

    def reload(self, models: Sequence[str] = ()) -> Change:
        """Read the configuration again, and have the workers of these models replaced, changed or not.

        Raises `ConfigError`, `SetupError`, `Wrong` and `OSError`; then nothing has changed.
        """
        changed = change(self.settings, self._read())
        fresh = self._models_of(changed.settings)
        standing = renew(self._standing, models, list(fresh), time.time())
        self._launcher.adapt(changed.settings)
        self.settings = changed.settings
        for name, model in self._brain.models.items():
            model.adapt(fresh[name])
        self._standing = in_force(standing, self._limits(), time.time())
        self._put_in_force()
        self._save()
        log.info("configuration read again: %s", changed)
        return changed

    def _put_in_force(self) -> None:
        """Tell the brain what stands."""
        self._brain.paused = self._standing.paused_since is not None
        offset = time.monotonic() - time.time()
        for name, model in self._brain.models.items():
            hold, before = self._standing.holds.get(name), self._standing.renew_before.get(name)
            if model.held is not None and hold is None:
                model.decided_at = float("-inf")
            model.held = None if hold is None else held(hold)
            model.rule = Rule(
                generation(self.settings, name),
                model.scaling.max_worker_age_s,
                None if before is None else before + offset,
            )

    def _limits(self) -> dict[str, Limits]:
        return {name: model.limits for name, model in self._brain.models.items()}

    # ---- files

    def _recall(self) -> None:
        """Go on from what a predecessor has left, if it has."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            saved = msgspec.json.decode((self._folder / "orders.json").read_bytes(), type=_Saved)
            self._standing = in_force(saved.standing, self._limits(), time.time())
            self._chronicle = DecisionLog(saved.last_decision)
            age_s = max(time.time() - saved.at, 0.0)
            self._brain.recall((self._folder / "brain.json").read_bytes(), time.monotonic(), age_s)
        if self._standing.paused_since is not None:
            log.warning("scaling is paused, as was ordered: `python -m controller resume` ends it")
        for model, hold in self._standing.holds.items():
            log.warning("%s is %s", model, held(hold).reason)

    def _save(self, beyond: int = _UNSAVED_DECISIONS) -> None:
        self._saved_at = time.monotonic()
        saved = _Saved(self._standing, self._chronicle.last + beyond, time.time())
        try:
            _write(self._folder / "brain.json", self._brain.remember())
            _write(self._folder / "orders.json", msgspec.json.encode(saved))
        except OSError as error:
            log.warning("what was ordered and decided cannot be kept for a restart: %s", error)


def _write(file: Path, content: bytes) -> None:
    """Whoever reads the file finds all of it."""
    draft = file.with_suffix(".tmp")
    draft.write_bytes(content)
    draft.replace(file)


def _words(order: Command) -> str:
    """The order, for people."""
    match order:
        case Reload(models):
            return f"reload{', with new workers for ' + ', '.join(models) if models else ''}"
        case _:
            told = [f"{name} {value}" for name, value in msgspec.structs.asdict(order).items() if value is not None]
            return " ".join([type(order).__name__.lower(), *told])
