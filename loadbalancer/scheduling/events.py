"""The scheduler's inputs (events that have happened) and outputs (effects to carry out)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadbalancer.scheduling.task import Task, TaskUpdate
from wire.codec import Frame, WorkerEnvelope
from wire.inputs import Shape
from wire.messages import ToWorker

# ---- events


class TasksSubmitted(msgspec.Struct, frozen=True):
    """New tasks of one request, of one model. `already_counted`: `RequestProxied` has counted them as arrivals."""

    tasks: Sequence[Task]
    already_counted: bool = False


class TasksCancelled(msgspec.Struct, frozen=True):
    """The results of these tasks are not needed any more. Unknown and ended tasks are ignored."""

    tasks: Sequence[str]
    reason: str


class MessageReceived(msgspec.Struct, frozen=True):
    """A worker's message. `worker` is the identity of its connection, which it cannot choose per message."""

    worker: str
    envelope: WorkerEnvelope


class WorkerLost(msgspec.Struct, frozen=True):
    """The worker's process or connection has ended."""

    worker: str
    reason: str


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


class ProcessSuspended(msgspec.Struct, frozen=True):
    """The balancer did not run for so many seconds, and heard no worker."""

    pause_s: float


class RequestProxied(msgspec.Struct, frozen=True):
    """Another server is asked for `count` tasks of this model in `steps` steps each."""

    model: str
    shape: Shape
    steps: int
    count: int


class ProxyFinished(msgspec.Struct, frozen=True):
    """The other server has answered, or will not."""

    model: str
    count: int


Event = (
    TasksSubmitted
    | TasksCancelled
    | MessageReceived
    | WorkerLost
    | Tick
    | ProcessSuspended
    | RequestProxied
    | ProxyFinished
)


# ---- effects


class SendMessage(msgspec.Struct, frozen=True):
    """Send a message to the worker."""

    worker: str
    message: ToWorker
    frames: Sequence[Frame] = ()


class NotifyListener(msgspec.Struct, frozen=True):
    """Pass an update to the listener of the task's request."""

    update: TaskUpdate


class LogLine(msgspec.Struct, frozen=True):
    """Write a line to the log."""

    text: str


class RecordTask(msgspec.Struct, frozen=True):
    """Write an ended task to the record of arrivals."""

    task: Task


Effect = SendMessage | NotifyListener | LogLine | RecordTask
