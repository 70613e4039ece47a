"""The scheduler's inputs (events that have happened) and outputs (effects to carry out)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadbalancer.scheduling.task import Task, TaskUpdate
from wire.codec import Frame, WorkerEnvelope
from wire.messages import Shape, ToWorker

# ---- events


@dataclass(frozen=True, slots=True)
class TasksSubmitted:
    """New tasks of one request, of one model. `already_counted`: `RequestProxied` has counted them as arrivals."""

    tasks: Sequence[Task]
    already_counted: bool = False


@dataclass(frozen=True, slots=True)
class TasksCancelled:
    """The results of these tasks are not needed any more. Unknown and ended tasks are ignored."""

    tasks: Sequence[str]
    reason: str


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A worker's message. `worker` is the identity of its connection, which it cannot choose per message."""

    worker: str
    envelope: WorkerEnvelope


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
    """Another server is asked for `count` tasks of this model in `steps` steps each."""

    model: str
    shape: Shape
    steps: int
    count: int


@dataclass(frozen=True, slots=True)
class ProxyFinished:
    """The other server has answered, or will not."""

    model: str
    count: int


Event = TasksSubmitted | TasksCancelled | MessageReceived | WorkerLost | Tick | RequestProxied | ProxyFinished


# ---- effects


@dataclass(frozen=True, slots=True)
class SendMessage:
    """Send a message to the worker."""

    worker: str
    message: ToWorker
    frames: Sequence[Frame] = ()


@dataclass(frozen=True, slots=True)
class NotifyListener:
    """Pass an update to the listener of the task's request."""

    update: TaskUpdate


@dataclass(frozen=True, slots=True)
class LogLine:
    """Write a line to the log."""

    text: str


@dataclass(frozen=True, slots=True)
class RecordTask:
    """Write an ended task to the record of arrivals."""

    task: Task


Effect = SendMessage | NotifyListener | LogLine | RecordTask
