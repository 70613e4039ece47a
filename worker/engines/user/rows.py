"""A call inside a user's engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wire.inputs import Part
from worker.engine import ResultChunk, TaskError


@dataclass(slots=True, eq=False)
class CallRow:
    """One call: its item, and its result or error when `step == steps`."""

    item: Any
    #: The client reads chunks as they come. Otherwise they are collected for the result.
    is_streaming: bool
    #: Decodes the item again.
    decode: Callable[[], Any]
    step: int = 0
    steps: int = 1
    output: Any = None
    error: TaskError | None = None
    #: What the runner needs between two steps.
    state: Any = None
    #: Number of chunks until now.
    chunk_count: int = 0
    #: About the size of the values of a stream that are collected for the result.
    collected_bytes: int = 0
    _values: list[Any] | None = None
    _chunks: list[ResultChunk] | None = None

    def renew_item(self) -> None:
        """Replace the item by an equal one: a call that has failed may have changed it. Raises `TaskError`."""
        self.item = self.decode()

    def finish(self, output: Any) -> None:
        """The call is done, with this result."""
        self.step += 1
        self.steps = self.step
        self.output = output

    def fail(self, error: TaskError) -> None:
        """The call is done, with this error."""
        self.finish(None)
        self.error = error

    def advance(self) -> None:
        """The call has taken a step and is not done."""
        self.step += 1
        self.steps = max(self.steps, self.step + 1)

    def add_value(self, value: Any, size: int) -> None:
        """Collect a value of a stream, of about so many bytes, for the result."""
        self.collected_bytes += size
        if self._values is None:
            self._values = []
        self._values.append(value)

    def restart(self) -> None:
        """Forget what its generator has yielded. The next step makes another generator."""
        self.state, self._values, self.collected_bytes = None, None, 0

    def add_chunk(self, part: Part, frame: bytes) -> None:
        if self._chunks is None:
            self._chunks = []
        self._chunks.append(ResultChunk(self.chunk_count, part, frame))
        self.chunk_count += 1

    def take_chunks(self) -> Sequence[ResultChunk]:
        """Return the chunks since the last call."""
        if self._chunks is None:
            return ()
        chunks, self._chunks = self._chunks, None
        return chunks

    def take_tokens(self) -> None:
        """It generates no text."""

    def collected(self) -> Any:
        """Return the values of a stream as one: texts and bytes joined, others as a list."""
        values = self._values or []
        if values and all(isinstance(value, str) for value in values):
            return "".join(values)
        if values and all(isinstance(value, bytes) for value in values):
            return b"".join(values)
        return values
