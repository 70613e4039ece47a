"""What a model must offer to be served: the protocol between the step loop and an engine.

The loop owns order and time, the engine owns tensors. All methods are called from the loop's thread, except the
callables that `render` returns: those run in a thread pool while the loop goes on stepping.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wire.messages import EngineInfo, FailureKind, ImageInputs

#: Tasks with equal keys can share a forward pass.
BatchKey = Hashable


class TaskError(Exception):
    """One task cannot be done; the others are not touched. `kind` and the text go to the client."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message


class UnsupportedModel(Exception):
    """The configured model is not there, or is none that the engine can run. The text says what it found."""


class OutOfMemory(Exception):
    """The device cannot hold a step of this many rows. The text says what was needed; no row has moved."""


class DeviceLost(Exception):
    """The device can do nothing more for this process, which has to end."""


@dataclass(frozen=True)
class Checkpoint:
    """A task's whole state at a step boundary: enough to go on elsewhere as if nothing had happened."""

    step: int
    frames: Sequence[bytes] = field(default=())


@dataclass(frozen=True)
class Wanted:
    """A task that is to join: what to draw, its source pictures as raw pixels, and its state if it ran before."""

    inputs: ImageInputs
    sources: Sequence[bytes] = field(default=())
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Picture:
    """An encoded image. `flagged`: the model's safety checker objects to it."""

    data: bytes
    flagged: bool = False


class Row(Protocol):
    """A task inside the engine. It is done when `step == steps`."""

    @property
    def step(self) -> int:
        """Steps taken so far."""

    @property
    def steps(self) -> int:
        """Steps to take in all: forward passes, which some samplers need more of than was asked."""


class StepEngine(Protocol):
    """A model whose requests take many steps, and can be joined and left between any two."""

    def fetch(self) -> None:
        """Read the weights into main memory and leave the device alone. Called once, first."""

    def load(self) -> None:
        """Bring the weights onto the device, so that requests can be admitted; fetches them where that was left out.

        The device is as the constructor was told, and is used for the first time here.
        """

    def warm_up(self) -> None:
        """Run once, so that the first request is as fast as the next. Called once, after `load`."""

    def info(self) -> EngineInfo:
        """What it is and what it can do. Valid after `load`."""

    def fingerprint(self) -> str:
        """Names everything that its speed depends on: device, model, precision, library versions."""

    def key(self, inputs: ImageInputs) -> BatchKey:
        """Which tasks this one can share a forward pass with. Cheap and pure."""

    def admit(self, tasks: Sequence[Wanted]) -> list[Row | TaskError]:
        """A row for each task, in order, from its start or its checkpoint; prompts are encoded together.

        Raises `OutOfMemory` where they do not fit together, and `DeviceLost`.
        """

    def step(self, rows: Sequence[Row]) -> None:
        """Advance every row by one step; all have equal keys. If it raises, no row has moved.

        Raises `OutOfMemory` where they do not fit together, `DeviceLost`, or anything else for a row that cannot be
        stepped: the loop finds out which.
        """

    def synchronize(self) -> None:
        """Wait until the device has done all that it was told."""

    def render(self, row: Row) -> Callable[[], Picture]:
        """The row's picture as it stands: a callable, free of the row's later changes, that decodes and encodes.

        It raises `TaskError` where there is no picture to be had (a latent that is not finite).
        """

    def save(self, row: Row) -> Callable[[], Checkpoint] | None:
        """The row's state as it stands, to go on elsewhere: a callable like that of `render`.

        None where the task can only start again. The row itself goes on, or is released.
        """

    def release(self, row: Row) -> None:
        """The row leaves for good. Called once for every admitted row, after its last `render` or `save`."""

    def memory_bytes(self) -> int:
        """Memory in use on the device."""
