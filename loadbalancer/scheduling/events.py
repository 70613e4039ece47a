"""What goes into the dispatcher and what comes out: events that happened, effects that are to be brought about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadbalancer.scheduling.task import Task, Update
from wire.codec import Frame, FromWorker
from wire.messages import ToWorker

# ---- events


@dataclass(frozen=True, slots=True)
class Submit:
    """New tasks of one request, of one model. `known`: they were counted as arrivals when they were forwarded."""

    tasks: Sequence[Task]
    known: bool = False


@dataclass(frozen=True, slots=True)
class Abandon:
    """Nobody waits for these tasks any more. Unknown and ended ones are ignored."""

    tasks: Sequence[str]
    reason: str


@dataclass(frozen=True, slots=True)
class Said:
    """A worker's message; `worker` is the name its connection has, which it cannot choose per message."""

    worker: str
    parcel: FromWorker


@dataclass(frozen=True, slots=True)
class Gone:
    """The worker's process or connection has ended."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Another server is asked to do what would have been tasks of this model: `count` images in `steps` steps each."""

    model: str
    size: tuple[int, int]
    steps: int
    count: int


@dataclass(frozen=True, slots=True)
class Forwarded:
    """It has answered, or will not."""

    model: str
    count: int


Event = Submit | Abandon | Said | Gone | Tick | Forward | Forwarded


# ---- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Say this to the worker."""

    worker: str
    message: ToWorker
    frames: Sequence[Frame] = ()


@dataclass(frozen=True, slots=True)
class Tell:
    """Pass this on to the request that waits for it."""

    update: Update


@dataclass(frozen=True, slots=True)
class Note:
    """Worth a line in the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Account:
    """The task has ended: this is for the record of arrivals."""

    task: Task


Effect = Send | Tell | Note | Account
