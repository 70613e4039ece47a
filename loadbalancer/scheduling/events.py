"""What goes into the dispatcher and what comes out: events that happened, effects that are to be brought about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadbalancer.scheduling.task import Task, TaskUpdate
from wire.codec import Frame, FromWorker
from wire.messages import ToWorker

# ---- events


@dataclass(frozen=True, slots=True)
class TasksSubmitted:
    """New tasks of one request, of one model. `known`: they were counted as arrivals when they were forwarded."""

    tasks: Sequence[Task]
    known: bool = False


@dataclass(frozen=True, slots=True)
class TasksCancelled:
    """Nobody waits for these tasks any more. Unknown and ended ones are ignored."""

    tasks: Sequence[str]
    reason: str


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A worker's message; `worker` is the name its connection has, which it cannot choose per message."""

    worker: str
    parcel: FromWorker


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker's process or connection has ended."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class RequestProxied:
    """Another server is asked to do what would have been tasks of this model: `count` images in `steps` steps each."""

    model: str
    size: tuple[int, int]
    steps: int
    count: int


@dataclass(frozen=True, slots=True)
class ProxyFinished:
    """It has answered, or will not."""

    model: str
    count: int


Event = TasksSubmitted | TasksCancelled | MessageReceived | WorkerLost | Tick | RequestProxied | ProxyFinished


# ---- effects


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Say this to the worker."""

    worker: str
    message: ToWorker
    frames: Sequence[Frame] = ()


@dataclass(frozen=True, slots=True)
class NotifyListener:
    """Pass this on to the request that waits for it."""

    update: TaskUpdate


@dataclass(frozen=True, slots=True)
class LogLine:
    """Worth a line in the log."""

    text: str


@dataclass(frozen=True, slots=True)
class RecordTask:
    """The task has ended: this is for the record of arrivals."""

    task: Task


Effect = SendMessage | NotifyListener | LogLine | RecordTask
