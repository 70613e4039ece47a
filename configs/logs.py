"""The log format of all programs."""

from __future__ import annotations

import json
import logging
import re
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType

#: Control characters, which could forge lines or command a terminal, and separators that viewers take for line ends.
_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_NOT_IN_LINES = re.compile(f"[{_CONTROL}\n\t]")
_NOT_IN_TEXTS = re.compile(f"[{_CONTROL}]")
#: Libraries that log or warn about what clients send. The API answers the client instead.
_ABOUT_CLIENTS = ("python_multipart", "multipart", "PIL")

_ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

#: Begins the line by which a worker says why it could not start; the controller finds it at the end of the log.
CANNOT_START = "cannot start: "


#: What the current code works for, such as the request; added to each line as fields.
FieldSource = Callable[[], Mapping[str, str]]
#: Fields that a log call may give in `extra`.
_EXTRA_FIELDS = ("task", "request_id", "trace_id")
#: Bounds a line.
_MAX_CHARS = 64 << 10


def _no_fields() -> Mapping[str, str]:
    return {}


class EscapingFormatter(logging.Formatter):
    """Escapes control characters, so that no text of a client can forge a line.

    `multiline`: messages may have several lines. Tracebacks always may.
    """

    def __init__(self, layout: str, *, multiline: bool = False) -> None:
        super().__init__(layout)
        self._forbidden = _NOT_IN_TEXTS if multiline else _NOT_IN_LINES

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        record.message = self._forbidden.sub(_escaped, record.message)
        line = super().formatMessage(record)
        request = getattr(record, "request_id", "")
        return f"{line} [request {self._forbidden.sub(_escaped, request)}]" if request else line

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802 - of logging
        """Indented: a message of several lines is no log line either."""
        return textwrap.indent(_NOT_IN_TEXTS.sub(_escaped, super().formatException(ei)), "  ")


class JsonFormatter(logging.Formatter):
    """Writes each record as one JSON object in ASCII on one line, so that no text can forge a line or a field.

    `fields` are those of the process, `context` returns those of the current request.
    """

    def __init__(self, fields: Mapping[str, str], context: FieldSource = _no_fields) -> None:
        super().__init__()
        self._fields = fields
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        try:
            message = record.getMessage()
        except Exception:  # the arguments do not fit: that is no reason to lose the line
            message = f"{record.msg!s} {record.args!r}"
        fields = {
            "time": utc_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _bounded(message),
            **self._fields,
            **self._context(),
        }
        fields |= {name: str(value) for name in _EXTRA_FIELDS if (value := getattr(record, name, ""))}
        if record.exc_info:
            fields["exception"] = _bounded(self.formatException(record.exc_info))
        return json.dumps(fields)


def utc_time(at: float) -> str:
    """Return the Unix time in the form of RFC 3339, with milliseconds."""
    second, fraction = divmod(at, 1.0)
    return f"{_date(int(second))}.{int(fraction * 1000):03}Z"


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _bounded(text: str) -> str:
    """Shorten a long text in the middle: the end of a traceback says what has happened."""
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS // 2]} ... {text[-_MAX_CHARS // 2 :]}"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def configure_logging(
    level: str,
    *,
    multiline: bool = False,
    as_json: bool = False,
    program: str = "",
    context: FieldSource = _no_fields,
    **fields: str,
) -> None:
    """Write log lines to standard error: time, level, logger, message.

    `as_json`: each as a JSON object, which also has the `program`, the `fields` and what `context` returns. Warnings
    and exceptions that nobody has caught become log lines then, too.
    """
    handler = logging.StreamHandler(sys.stderr)
    layout = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    if as_json:
        handler.setFormatter(JsonFormatter({"program": program, **fields}, context))
    else:
        handler.setFormatter(EscapingFormatter(layout, multiline=multiline))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for verbose in ("filelock", "asyncio"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
    for library in _ABOUT_CLIENTS:
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"PIL\b")
    if as_json:
        logging.captureWarnings(capture=True)
        sys.excepthook = _log_exception
        threading.excepthook = _log_thread_exception


def _log_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger().critical("the program has failed", exc_info=(kind, error, trace))


def _log_thread_exception(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        logging.getLogger().error("a thread has failed", exc_info=args.exc_value)


def start_failure(tail: str) -> str:
    """Return the reason that a worker gave at the end of its log; empty if it gave none."""
    messages = [_message(line) for line in tail.splitlines() if CANNOT_START in line]
    lines = [message.partition(CANNOT_START)[2] for message in messages if CANNOT_START in message]
    return lines[-1] if lines else ""


def _message(line: str) -> str:
    """Return the message of a line in JSON; any other line as it is."""
    try:
        fields = json.loads(line) if line.startswith("{") else line
    except (ValueError, RecursionError):
        return line
    return str(fields.get("message", "")) if isinstance(fields, dict) else line
