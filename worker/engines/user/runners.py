"""How the step loop's steps call a user's methods.

A runner keeps the engine's promise: a step that raises has advanced no row. An error that concerns one row only is
stored in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from wire.inputs import CallInputs
from worker.engine import TaskError
from worker.engines.user.failures import batch_error, call_error, is_failure, task_error
from worker.engines.user.rows import CallRow

log = logging.getLogger(__name__)

#: The largest number that a message can have.
_MAX_STEPS = CallInputs.max_steps


class Runner(Protocol):
    """Advances rows by calling a user's engine."""

    def start(self, row: CallRow, saved: dict[str, Any] | None) -> None:
        """Prepare a new row, from its saved state if it has one. Raises any exception of the user's code."""

    def step(self, rows: Sequence[CallRow]) -> None:
        """Advance all rows. Raises `TaskError`, `OutOfMemory` or `DeviceLost`."""

    def release(self, row: CallRow) -> None:
        """Forget a row, which may not be done."""


class BatchRunner:
    """One call of `predict` for all rows."""

    def __init__(self, predict: Callable[[list[Any]], Any]) -> None:
        self._predict = predict

    def start(self, row: CallRow, saved: dict[str, Any] | None) -> None:
        """A call has no state."""

    def release(self, row: CallRow) -> None:
        """A call has no state."""

    def step(self, rows: Sequence[CallRow]) -> None:
        try:
            outputs = self._predict([row.item for row in rows])
        except BaseException as error:
            failure = batch_error(error)
            if len(rows) > 1:  # they are called again
                for row in rows:
                    row.renew_item()
            raise failure from error
        problem = count_problem(outputs, len(rows))
        if problem:
            for row in rows:
                row.fail(TaskError("error", f"predict {problem}"))
            return
        for row, output in zip(rows, outputs, strict=True):
            end_row(row, output)


class ItemRunner(BatchRunner):
    """One call of `predict` for each row."""

    def __init__(self, predict: Callable[[Any], Any]) -> None:
        super().__init__(predict)

    def step(self, rows: Sequence[CallRow]) -> None:
        if len(rows) == 1:
            self._step_one(rows[0])
            return
        for row in rows:
            try:
                self._step_one(row)
            except TaskError as error:
                row.fail(error)

    def _step_one(self, row: CallRow) -> None:
        try:
            output = self._predict(row.item)
        except BaseException as error:
            raise batch_error(error) from error
        end_row(row, output)


def end_row(row: CallRow, output: Any) -> None:
    """End the call with the engine's output, which is an exception where the call has failed."""
    if is_failure(output):
        row.fail(task_error(output))
    else:
        row.finish(output)


class IterativeRunner:
    """`start`, `step` and `result` of a model that works in steps."""

    def __init__(self, engine: Any, on_preview: Callable[[CallRow, Any], None]) -> None:
        self._engine = engine
        self._steps = getattr(engine, "steps", None)
        self._preview = getattr(engine, "preview", None)
        self._on_preview = on_preview
        self._has_preview_failed = False

    def start(self, row: CallRow, saved: dict[str, Any] | None) -> None:
        engine = self._engine
        if self._steps is not None:
            row.steps = int(self._steps(row.item))
            if not 1 <= row.steps <= _MAX_STEPS:
                raise ValueError(f"steps returned {row.steps}; it must be between 1 and {_MAX_STEPS}")
        row.state = engine.start(row.item) if saved is None else engine.restore(row.item, saved)

    def release(self, row: CallRow) -> None:
        row.state = None

    def step(self, rows: Sequence[CallRow]) -> None:
        try:
            done = self._engine.step([row.state for row in rows])
        except BaseException as error:
            raise batch_error(error) from error
        try:
            is_done = self._flags(done, len(rows))
        except BaseException as error:  # the states have advanced: the step cannot be repeated with fewer of them
            for row in rows:
                row.fail(call_error(error))
            return
        for index, row in enumerate(rows):
            row.step += 1
            if is_done[index]:
                row.steps = row.step
            elif self._steps is None:
                row.steps = row.step + 1
            if row.step >= row.steps:
                self._finish(row)
            elif row.is_streaming and self._preview is not None:
                self._add_preview(row)

    def _flags(self, done: Any, count: int) -> Sequence[bool]:
        """Return which items are done. Raises `TaskError`, and what the truth value of a flag raises."""
        if done is None:
            if self._steps is None:
                text = "step returned None, and the engine has no steps(item): no item would ever end"
                raise TaskError("error", text)
            return [False] * count
        if problem := count_problem(done, count):
            raise TaskError("error", f"step {problem}")
        return [bool(each) for each in done]

    def _finish(self, row: CallRow) -> None:
        row.step -= 1  # finish counts it
        try:
            output = self._engine.result(row.state)
        except BaseException as error:
            row.fail(call_error(error))
            return
        end_row(row, output)

    def _add_preview(self, row: CallRow) -> None:
        assert self._preview is not None
        try:
            value = self._preview(row.state)
        except BaseException:  # a failed preview does not fail the call
            log.log(logging.DEBUG if self._has_preview_failed else logging.WARNING, "no preview", exc_info=True)
            self._has_preview_failed = True
            return
        if value is not None:
            self._on_preview(row, value)


def count_problem(outputs: Any, expected: int) -> str:
    """Return what is wrong with the results of a batch, or an empty text."""
    if outputs is None or isinstance(outputs, str | bytes | dict | set):
        kind = "None" if outputs is None else f"a {type(outputs).__name__}"
        return f"returned {kind}; it must return a list with one result per item"
    try:
        count = len(outputs)
    except TypeError:
        return f"returned a {type(outputs).__name__}; it must return a list with one result per item"
    return "" if count == expected else f"returned {count} results for {expected} items"
