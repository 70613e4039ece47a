"""Async engines: an event loop in a thread of the worker, on which the calls of a batch run concurrently."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any

from configs.text import exception_line
from worker.engine import TaskError
from worker.engines.user.failures import call_error
from worker.engines.user.rows import CallRow
from worker.engines.user.runners import end_row
from worker.engines.user.streams import Emit

log = logging.getLogger(__name__)

#: Values that a call may be ahead of the steps that take them.
_MAX_AHEAD = 1024
#: A step waits so long for a result, then new calls may join.
_STEP_S = 0.005
_CLOSE_S = 5.0


class EventLoopThread:
    """An event loop that runs until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="engine-async", daemon=True)
        self._is_closing = False
        self._thread.start()

    def _run(self) -> None:
        """Run the loop again when a call has stopped it, as `SystemExit` and `loop.stop()` do."""
        while not self._is_closing:
            try:
                self._loop.run_forever()
            except BaseException as error:
                log.warning("a call has stopped the event loop, which goes on: %s", exception_line(error))

    def submit(self, work: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
        """Start it; the result can be waited for from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)  # type: ignore[return-value]

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return the result. Raises its exception."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def wait_for_turn(self) -> None:
        """Wait until the loop has run what waits for it. A call that blocks it holds up the caller as well."""
        turn = threading.Event()
        self._loop.call_soon_threadsafe(turn.set)
        turn.wait()

    def iterate(self, values: AsyncIterator[Any]) -> Iterator[Any]:
        """Yield the values of an async iterator in this thread."""

        async def following() -> Any:
            return await anext(values, _END)

        try:
            while (value := self.run(following())) is not _END:
                yield value
        finally:
            close = getattr(values, "aclose", None)
            if close is not None:
                self.run(close())

    def close(self) -> None:
        """Cancel what still runs."""
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(_CLOSE_S)
        self._is_closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()


_END = object()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class AsyncRunner:
    """One coroutine or async generator per row. A step ends when one of them has news, or after a few milliseconds."""

    def __init__(self, predict: Callable[[Any], Any], emit: Emit, thread: EventLoopThread, *, is_stream: bool) -> None:
        self._predict = predict
        self._emit = emit
        self._thread = thread
        self._is_stream = is_stream
        self._has_news = threading.Event()

    def start(self, row: CallRow, saved: dict[str, Any] | None) -> None:
        """The call starts with its first step."""

    def release(self, row: CallRow) -> None:
        call: _Call | None = row.state
        row.state = None
        if call is not None:
            call.cancel()

    def step(self, rows: Sequence[CallRow]) -> None:
        for row in rows:
            if row.state is None:
                row.state = _Call(self._thread, self._predict, row.item, self._has_news, is_stream=self._is_stream)
        if not self._has_news.wait(_STEP_S):
            self._thread.wait_for_turn()  # a blocked event loop counts as a step that does not end
        self._has_news.clear()
        for row in rows:
            self._collect(row, row.state)

    def _collect(self, row: CallRow, call: _Call) -> None:
        is_done = call.is_done()  # before the values, so that none is left behind
        for value in call.take_values():
            if row.error is not None:
                return
            row.advance()
            try:
                self._emit(row, value)
            except TaskError as error:
                row.fail(error)
                return
        if not is_done:
            return
        try:
            output = call.result()
        except BaseException as error:
            log.error("a call failed", exc_info=error)
            row.fail(call_error(error))
            return
        end_row(row, output)


class _Call:
    """A running coroutine, with the values that it has yielded."""

    def __init__(
        self,
        thread: EventLoopThread,
        predict: Callable[[Any], Any],
        item: Any,
        has_news: threading.Event,
        *,
        is_stream: bool,
    ) -> None:
        self._has_news = has_news
        self._lock = threading.Lock()
        self._values: list[Any] = []
        work = self._read(predict(item)) if is_stream else predict(item)
        self._future = thread.submit(work)
        self._future.add_done_callback(lambda _: has_news.set())

    def is_done(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        return self._future.result()

    def cancel(self) -> None:
        self._future.cancel()

    def take_values(self) -> list[Any]:
        with self._lock:
            values, self._values = self._values, []
        return values

    async def _read(self, values: AsyncIterator[Any]) -> None:
        try:
            async for value in values:
                if value is not None:
                    with self._lock:
                        self._values.append(value)
                    self._has_news.set()
                    while len(self._values) >= _MAX_AHEAD:  # it may never wait for anything itself
                        await asyncio.sleep(_STEP_S)
        finally:
            close = getattr(values, "aclose", None)
            if close is not None:
                await close()
