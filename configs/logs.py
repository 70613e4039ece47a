"""The log format of all programs."""

from __future__ import annotations

import logging
import re
import sys
import textwrap
import warnings
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


class EscapingFormatter(logging.Formatter):
    """Escapes control characters, so that no text of a client can forge a line.

    `multiline`: messages may have several lines. Tracebacks always may.
    """

    def __init__(self, layout: str, *, multiline: bool = False) -> None:
        super().__init__(layout)
        self._forbidden = _NOT_IN_TEXTS if multiline else _NOT_IN_LINES

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        record.message = self._forbidden.sub(_escaped, record.message)
        return super().formatMessage(record)

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802 - of logging
        """Indented: a message of several lines is no log line either."""
        return textwrap.indent(_NOT_IN_TEXTS.sub(_escaped, super().formatException(ei)), "  ")


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def configure_logging(level: str, *, multiline: bool = False) -> None:
    """Write log lines to standard error: time, level, logger, message."""
    handler = logging.StreamHandler(sys.stderr)
    layout = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    handler.setFormatter(EscapingFormatter(layout, multiline=multiline))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for verbose in ("filelock", "asyncio"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
    for library in _ABOUT_CLIENTS:
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"PIL\b")


def start_failure(tail: str) -> str:
    """Return the reason that a worker gave at the end of its log; empty if it gave none."""
    lines = [line.partition(CANNOT_START)[2] for line in tail.splitlines() if CANNOT_START in line]
    return lines[-1] if lines else ""
