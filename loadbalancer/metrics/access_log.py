"""The access log: one line for each request that has been answered, beside the other log lines.

A line holds no prompt, query, key or address. The event loop makes it and goes on; a thread writes. Lines that cannot
be written in time are counted and dropped.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter, deque

import msgspec

from configs.logs import utc_time
from configs.text import printable
from loadbalancer.context.request_context import RequestContext

_LOGGER = "loadbalancer.access"
#: Lines that wait for the disk. Further ones are dropped.
_MAX_WAITING = 20_000
#: Lines are written together after this time.
_WRITE_S = 0.2
_MAX_PATH_CHARS = 200
_TEXT_FIELDS = ("model", "owner", "bytes", "input_tokens", "output_tokens", "error", "request_id", "trace_id")
#: Time for the rest at the end.
_END_S = 1.0


class AccessLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answered request. Times are seconds; `time` is that of the end of the response."""

    time: str
    level: str
    logger: str
    message: str
    program: str
    request_id: str
    method: str
    path: str
    status: int
    duration_s: float
    bytes: int
    model: str = ""
    #: Name of the API key.
    owner: str = ""
    #: The longest wait in the queue and the longest run of its tasks.
    waited_s: float | None = None
    ran_s: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    trace_id: str = ""


def access_line(
    context: RequestContext, method: str, path: str, status: int, duration_s: float, owner: str, size: int, now: float
) -> AccessLine:
    """Return the line of a request that has been answered at the Unix time `now`. `size`: bytes of the response."""
    if len(path) > _MAX_PATH_CHARS or not (path.isascii() and path.isprintable()):
        path = printable(path, _MAX_PATH_CHARS)
    return AccessLine(
        utc_time(now),
        "info",
        _LOGGER,
        f"{method} {path} {status}",
        "loadbalancer",
        context.request_id,
        method,
        path,
        status,
        round(duration_s, 6),
        size,
        context.model,
        owner,
        None if context.waited_s is None else round(context.waited_s, 6),
        None if context.ran_s is None else round(context.ran_s, 6),
        context.input_tokens,
        context.output_tokens,
        context.error_code,
        "" if context.trace is None else context.trace.trace_id,
    )


def as_text(line: AccessLine) -> str:
    """The line as `name=value`, with the path in quotes: it is the only value that a client chooses freely."""
    shown = [line.method, json.dumps(line.path), str(line.status), f"duration_s={line.duration_s:.3f}"]
    times = ((name, getattr(line, name)) for name in ("waited_s", "ran_s"))
    shown += [f"{name}={value:.3f}" for name, value in times if value is not None]
    shown += [f"{name}={value}" for name in _TEXT_FIELDS if (value := getattr(line, name))]
    return f"{line.time} INFO    {_LOGGER}: {' '.join(shown)}"


class AccessLog:
    """Collects the lines, and the thread that writes them to standard error."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._encoder = msgspec.json.Encoder()
        self._waiting: deque[AccessLine] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        #: Lines that found no room, and those that could not be written: each has a thread that counts.
        self._without_room = self._unwritten = 0

    @property
    def counters(self) -> Counter[str]:
        """Lines that were not written, because their reader is too slow or the disk is full."""
        dropped = self._without_room + self._unwritten
        return Counter(access_lines_dropped=dropped) if dropped else Counter()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write what is left. Blocks on the disk for a moment at most."""
        self._stopping.set()
        self._thread.join(_END_S)

    def put(
        self, context: RequestContext, method: str, path: str, status: int, duration_s: float, owner: str, size: int
    ) -> None:
        """Add the line of a request that has been answered just now."""
        if len(self._waiting) >= _MAX_WAITING:
            self._without_room += 1
        else:
            self._waiting.append(access_line(context, method, path, status, duration_s, owner, size, time.time()))

    def _run(self) -> None:
        while not self._stopping.wait(_WRITE_S):
            self._write()
        self._write()

    def _write(self) -> None:
        lines = [self._encoded(self._waiting.popleft()) for _ in range(len(self._waiting))]
        if lines:
            try:
                sys.stderr.write("".join(lines))
                sys.stderr.flush()
            except OSError:  # the disk is full: the next lines may find room again
                self._unwritten += len(lines)

    def _encoded(self, line: AccessLine) -> str:
        return (self._encoder.encode(line).decode() if self._as_json else as_text(line)) + "\n"
