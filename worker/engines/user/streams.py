"""Generators: each value that `predict` yields is a chunk, or a list with one chunk per item of a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from worker.engine import OutOfMemory, TaskError
from worker.engines.user.failures import batch_error, call_error, is_failure, task_error
from worker.engines.user.rows import CallRow
from worker.engines.user.runners import count_problem

log = logging.getLogger(__name__)

#: Sends one value of a row's stream.
Emit = Callable[[CallRow, Any], None]


class _Stream:
    """A generator and the rows that it serves."""

    def __init__(self, values: Iterator[Any], rows: Sequence[CallRow]) -> None:
        self.values = values
        #: None for a row that has failed or was released.
        self.rows: list[CallRow | None] = list(rows)
        self.has_emitted = False

    def discard(self, row: CallRow) -> None:
        self.rows = [None if each is row else each for each in self.rows]

    def close(self) -> None:
        close = getattr(self.values, "close", None)
        if close is not None:
            close()


class StreamRunner:
    """Advances each generator by one value per step. New rows start a generator of their own."""

    def __init__(self, predict: Callable[[Any], Iterator[Any]], emit: Emit, *, is_batched: bool) -> None:
        self._predict = predict
        self._emit = emit
        self._is_batched = is_batched
        #: Rows whose common generator failed before its first value: each gets one of its own.
        self._isolated: set[CallRow] = set()

    def start(self, row: CallRow, saved: dict[str, Any] | None) -> None:
        """The generator starts with the first step."""

    def release(self, row: CallRow) -> None:
        self._isolated.discard(row)
        stream: _Stream | None = row.state
        row.state = None
        if stream is not None:
            stream.discard(row)
            if not any(stream.rows):
                self._close(stream)

    def step(self, rows: Sequence[CallRow]) -> None:
        started = self._start_streams([row for row in rows if row.state is None])
        running = dict.fromkeys(row.state for row in rows if row.state is not None and row.state not in started)
        for index, stream in enumerate((*started, *running)):
            self._advance(stream, is_first=index == 0)

    def _start_streams(self, rows: Sequence[CallRow]) -> list[_Stream]:
        """Give each row its generator. Raises what the step loop expects."""
        together = [row for row in rows if self._is_batched and row not in self._isolated]
        groups = [together] if together else []
        groups += [[row] for row in rows if not self._is_batched or row in self._isolated]
        streams: list[_Stream] = []
        for group in groups:
            items = [row.item for row in group]
            try:
                values = iter(self._predict(items if self._is_batched else items[0]))
            except BaseException as error:
                if len(group) > 1 and isinstance(batch_error(error), TaskError):
                    groups += self._isolate(group)
                else:
                    self._fail(group, error)
                continue
            stream = _Stream(values, group)
            streams.append(stream)
            for row in group:
                row.state = stream
        return streams

    def _advance(self, stream: _Stream, *, is_first: bool) -> None:
        rows = [row for row in stream.rows if row is not None]
        try:
            values = next(stream.values)
        except StopIteration:
            for row in rows:
                row.finish(None)
            return
        except BaseException as error:
            self._on_error(stream, rows, error, is_first=is_first)
            return
        if not self._is_batched:
            values = [values]
        elif problem := count_problem(values, len(stream.rows)):
            self._fail(rows, TaskError("error", f"predict yielded a batch wrongly: it {problem}"))
            self._close(stream)
            return
        stream.has_emitted = True
        for receiver, value in zip(stream.rows, values, strict=True):
            if receiver is not None:
                self._on_value(stream, receiver, value)

    def _on_value(self, stream: _Stream, row: CallRow, value: Any) -> None:
        if is_failure(value):
            stream.discard(row)
            row.fail(task_error(value))
            return
        row.advance()
        if value is not None:
            try:
                self._emit(row, value)
            except TaskError as error:
                stream.discard(row)
                row.fail(error)

    def _on_error(self, stream: _Stream, rows: Sequence[CallRow], error: BaseException, *, is_first: bool) -> None:
        """Isolate the rows if nothing was sent yet; otherwise all of them fail. Raises what the step loop expects.

        After `OutOfMemory` it repeats the step with fewer rows, whose generators begin anew.
        """
        known = batch_error(error)
        is_repeatable = is_first and not any(row.chunk_count for row in rows)
        if not isinstance(known, TaskError) and (is_repeatable or not isinstance(known, OutOfMemory)):
            for row in rows:
                row.restart()
            raise known from error
        if len(rows) > 1 and not stream.has_emitted:
            self._isolate(rows)
            return
        self._fail(rows, error)

    def _isolate(self, rows: Sequence[CallRow]) -> list[list[CallRow]]:
        """Give each row a group of its own from now on, and an item that the failed call has not changed."""
        self._isolated.update(rows)
        for row in rows:
            row.state = None
            row.renew_item()
        return [[row] for row in rows]

    def _fail(self, rows: Sequence[CallRow], error: BaseException) -> None:
        log.error("a stream of %d calls failed", len(rows), exc_info=error)
        failure = call_error(error)
        for row in rows:
            row.fail(failure)

    def _close(self, stream: _Stream) -> None:
        try:
            stream.close()
        except BaseException:
            log.debug("a generator failed while it was closed", exc_info=True)
