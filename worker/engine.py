"""What a model must offer to be served: the protocol between the step loop and an engine.

The loop owns order and time, the engine owns tensors. All methods are called from the loop's thread, except the
callables that `render` returns: those run in a thread pool while the loop goes on stepping.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wire.messages import FailureKind, ImageInputs

#: Tasks with equal keys can share a forward pass.
BatchKey = Hashable


class TaskError(Exception):
    """One task cannot be done; the others are not touched. `kind` and the text go to the client."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message


@dataclass(frozen=True)
class Checkpoint:
    """A task's whole state at a step boundary: enough to go on elsewhere as if nothing had happened."""

    step: int
    frames: Sequence[bytes] = field(default=())


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

    def load(self) -> None:
        """Load the weights and run once, so that the first request is as fast as the next. Called once, first."""

    def key(self, inputs: ImageInputs) -> BatchKey:
        """Which tasks this one can share a forward pass with. Cheap and pure."""

    def admit(self, tasks: Sequence[tuple[ImageInputs, Checkpoint | None]]) -> list[Row | TaskError]:
        """A row for each task, in order, from its start or its checkpoint; prompts are encoded together."""

    def step(self, rows: Sequence[Row]) -> None:
        """Advance every row by one step; all have equal keys. If it raises, no row has moved."""

    def render(self, row: Row) -> Callable[[], bytes]:
        """The row's picture as it stands: a callable, free of the row's later changes, that decodes and encodes.

        It raises `TaskError` where there is no picture to be had (a latent that is not finite).
        """

    def evict(self, row: Row) -> Checkpoint | None:
        """The row's state to take elsewhere; None where the task can only start again."""

    def memory_bytes(self) -> int:
        """Memory in use on the device."""
