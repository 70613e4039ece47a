"""A dispatcher to play with in tests: what goes in, and what of its effects is of interest."""

from __future__ import annotations

from collections.abc import Mapping

from loadbalancer.scheduling.events import Effect, LogLine, MessageReceived, NotifyListener, SendMessage
from loadbalancer.scheduling.rules import Rules
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Task, TaskProgress
from wire.codec import FromWorker
from wire.messages import (
    PROTOCOL,
    About,
    Assign,
    Assignment,
    Hello,
    ImageInputs,
    Pull,
    StepCurve,
    ToBalancer,
    Yield,
)

INPUTS = ImageInputs("a seven", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")
CURVES = [StepCurve(64, 64, 4, [(1, 0.1), (2, 0.2), (4, 0.4)])]


def new_dispatch(
    max_tasks: int = 100, max_attempts: int = 3, rules: Rules | None = None, hold_s: float = 0.0
) -> Scheduler:
    return Scheduler(
        ["m"],
        max_tasks=max_tasks,
        max_attempts=max_attempts,
        heartbeat_s=1.0,
        lost_after_s=10.0,
        rules=rules,
        hold_s=hold_s,
    )


def task(name: str, now: float = 0.0, *, timeout_s: float = 1000.0, priority: int = 0) -> Task:
    return Task(name, "m", INPUTS, now, now + timeout_s, priority, steps=INPUTS.steps)


def say(
    core: Scheduler, worker: str, message: ToBalancer, now: float = 0.0, frames: tuple[bytes, ...] = ()
) -> list[Effect]:
    return core.handle(MessageReceived(worker, FromWorker(message, frames)), now)


def join(
    core: Scheduler, worker: str, slots: int, now: float = 0.0, running: Mapping[str, int] | None = None
) -> list[Effect]:
    hello = Hello(PROTOCOL, worker, "m", "sim:0", 1, list((running or {}).items()), About(checkpoints=True))
    return say(core, worker, hello, now) + say(core, worker, Pull(slots), now)


def sent_frames(effects: list[Effect]) -> list[bytes]:
    """The frames of the assignments, in order."""
    return [bytes(f) for e in effects if isinstance(e, SendMessage) and isinstance(e.message, Assign) for f in e.frames]


def told_of(effects: list[Effect]) -> list[TaskProgress]:
    return [e.update for e in effects if isinstance(e, NotifyListener) and isinstance(e.update, TaskProgress)]


def assigned(effects: list[Effect]) -> list[tuple[str, Assignment]]:
    return [
        (e.worker, a)
        for e in effects
        if isinstance(e, SendMessage) and isinstance(e.message, Assign)
        for a in e.message.tasks
    ]


def told(effects: list[Effect]) -> list[object]:
    return [effect.update for effect in effects if isinstance(effect, NotifyListener)]


def yielded(effects: list[Effect]) -> list[tuple[str, str]]:
    return [
        (e.worker, name)
        for e in effects
        if isinstance(e, SendMessage) and isinstance(e.message, Yield)
        for name in e.message.tasks
    ]


def notes(effects: list[Effect]) -> list[str]:
    return [effect.text for effect in effects if isinstance(effect, LogLine)]
