"""A scheduler for unit tests: shorthands for its events and effects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from configs.scaling import Scaling
from configs.sections import Queue, Workers
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.events import Effect, LogLine, MessageReceived, NotifyListener, SendMessage
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Task, TaskProgress, TaskUpdate
from wire.codec import WorkerEnvelope
from wire.inputs import ImageInputs, Part, Shape
from wire.messages import PROTOCOL, Assign, Assignment, Capacity, EngineInfo, Hello, Preempt, StepCurve, ToBalancer

#: The smallest image that the scheduler accepts.
PNG = b"\x89PNG\r\n\x1a\n"
#: The parts of an image task's result.
IMAGE = (Part("image/png"),)
INPUTS = ImageInputs("a seven", 64, 64, steps=20, guidance_scale=3.0, seed=1, scheduler="ddim")
CURVES = [StepCurve(Shape("64x64", 4096), 4, [(1, 0.1), (2, 0.2), (4, 0.4)])]


def new_scheduler(
    queue: Queue | None = None,
    workers: Workers | None = None,
    *,
    scaling: Scaling | None = None,
    grouped: Collection[str] = (),
    hold_s: float = 0.0,
) -> Scheduler:
    """A scheduler of one model `m`."""
    models = {"m": scaling or Scaling()}
    queue = queue or Queue(max_tasks=100)
    return Scheduler(models, queue, workers or Workers(), grouped=grouped, hold_s=hold_s)


def task(
    name: str, now: float = 0.0, *, timeout_s: float = 1000.0, priority: int = 0, sources: Sequence[bytes] = ()
) -> Task:
    return Task(name, "m", INPUTS, now, now + timeout_s, priority, steps=INPUTS.steps, sources=sources)


def receive(
    core: Scheduler, worker: str, message: ToBalancer, now: float = 0.0, frames: tuple[bytes, ...] = ()
) -> list[Effect]:
    return core.handle(MessageReceived(worker, WorkerEnvelope(message, frames)), now)


def connect(
    core: Scheduler, worker: str, slots: int, now: float = 0.0, running: Mapping[str, int] | None = None, pid: int = 1
) -> list[Effect]:
    hello = Hello(PROTOCOL, worker, "m", "sim:0", pid, list((running or {}).items()), EngineInfo(checkpoints=True))
    return receive(core, worker, hello, now) + receive(core, worker, Capacity(slots), now)


def sent_frames(effects: list[Effect]) -> list[bytes]:
    """The frames of the assignments, in order."""
    return [bytes(f) for e in effects if isinstance(e, SendMessage) and isinstance(e.message, Assign) for f in e.frames]


def progress_updates(effects: list[Effect]) -> list[TaskProgress]:
    return [e.update for e in effects if isinstance(e, NotifyListener) and isinstance(e.update, TaskProgress)]


def assignments(effects: list[Effect]) -> list[tuple[str, Assignment]]:
    return [
        (e.worker, a)
        for e in effects
        if isinstance(e, SendMessage) and isinstance(e.message, Assign)
        for a in e.message.tasks
    ]


def updates(effects: list[Effect]) -> list[object]:
    return [effect.update for effect in effects if isinstance(effect, NotifyListener)]


def preempt_requests(effects: list[Effect]) -> list[tuple[str, str]]:
    return [
        (e.worker, name)
        for e in effects
        if isinstance(e, SendMessage) and isinstance(e.message, Preempt)
        for name in e.message.tasks
    ]


def log_lines(effects: list[Effect]) -> list[str]:
    return [effect.text for effect in effects if isinstance(effect, LogLine)]


def notify(service: SchedulerService, update: TaskUpdate) -> None:
    """Pass an update to its listener."""
    service._carry_out([NotifyListener(update)], 0.0)
