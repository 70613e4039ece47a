"""Standard output and standard error that can neither stop nor delay the program that writes to them."""

from __future__ import annotations

import atexit
import io
import os
import select
import stat
import sys
import threading
import time
from typing import TextIO

#: Characters that wait for a reader that does not read. Output beyond them is dropped.
_MAX_PENDING = 1 << 20
#: Time for a slow reader at the end of the program.
_DRAIN_S = 1.0


class BackgroundStream(io.TextIOBase):
    """A text stream whose writes return at once and never raise.

    A thread writes to the file descriptor. Characters that the encoding lacks are escaped. Text is dropped when the
    reader is gone, or when `max_pending` characters wait for it; the next text that is written says how many.
    """

    def __init__(self, stream: TextIO, max_pending: int = _MAX_PENDING) -> None:
        super().__init__()
        stream.flush()
        self._stream = stream
        self._fd = stream.fileno()
        self._encoding = stream.encoding or "utf-8"
        self._max_pending = max_pending
        self._changed = threading.Condition()
        self._pending: list[str] = []
        self._pending_size = 0
        self._dropped = 0
        self._is_writing = False
        threading.Thread(target=self._run, name=f"output {self._fd}", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed declares a variable
        return self._encoding

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._changed:
            if self._pending_size + len(text) > self._max_pending:
                self._dropped += len(text)
            else:
                self._pending.append(text)
                self._pending_size += len(text)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: whoever prints must not wait for the reader. See `drain`."""

    def drain(self, timeout_s: float) -> bool:
        """Wait until all text is written, at most `timeout_s`. Return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending and not self._is_writing, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending)
                text, dropped = "".join(self._pending), self._dropped
                self._pending.clear()
                self._pending_size = self._dropped = 0
                self._is_writing = True
            if dropped:
                text = f"... {dropped} characters of output were not read in time and are left out\n{text}"
            self._write_bytes(text.encode(self._encoding, "backslashreplace"))
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()

    def _write_bytes(self, data: bytes) -> None:
        # Not through the stream's buffer: its lock would end the interpreter's shutdown with a fatal error.
        remaining = memoryview(data)
        while remaining:
            try:
                remaining = remaining[os.write(self._fd, remaining) :]
            except BlockingIOError:  # another program made the terminal non-blocking
                select.select([], [self._fd], [], 1.0)
            except OSError:
                return


def open_standard_descriptors() -> None:
    """Open the null device where this process was started without standard input, output or error.

    Otherwise the next file or socket takes that number, and what any library prints ends up in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest free number
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def discard_output() -> None:
    """Give up what waits to be written to standard output: the interpreter would try once more at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def detach_standard_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr` by background streams, except where they are regular files.

    The reader of a pipe may end or stop reading, and a terminal may close, at any time. One may also be missing.
    """
    open_standard_descriptors()
    streams = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, BackgroundStream):
            continue
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        if _may_block(stream):
            background = BackgroundStream(stream)
            setattr(sys, name, background)
            streams.append(background)
    if streams:
        atexit.register(drain_standard_streams)


def drain_standard_streams() -> None:
    """Give the readers of standard output and standard error a last chance, at most `_DRAIN_S` in all."""
    deadline = time.monotonic() + _DRAIN_S
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, BackgroundStream):
            stream.drain(max(deadline - time.monotonic(), 0.0))


def _may_block(stream: TextIO) -> bool:
    try:
        return not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # closed, or no file at all
        return False
