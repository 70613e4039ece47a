"""What an answer of the server says. Standard library only."""

from __future__ import annotations

import json

MAX_ERROR_CHARS = 160
#: The error of an event is at its start; a text that a model wrote may be anything.
_ERROR_STARTS = (b'data: {"error":{', b'data: {"type":"error"')


def error_code(content: bytes) -> str:
    """Return the code of an error in OpenAI's shape, or else its message, or else the start of the body."""
    try:
        error = json.loads(content)["error"]
        return str(error["code"] or error["message"])[:MAX_ERROR_CHARS]
    except (ValueError, KeyError, TypeError):
        return content[:MAX_ERROR_CHARS].decode(errors="replace")


def is_stream_error(line: bytes) -> bool:
    """Return whether a line of a stream is an error, after which nothing follows."""
    return line.startswith(_ERROR_STARTS)


def is_first_part(line: bytes, kind: str) -> bool:
    """Return whether a line of a stream brings a token, or a preview."""
    if kind == "chat":
        return b'"content":"' in line and b'"content":""' not in line
    return line.startswith(b"event: ") and line.rstrip().endswith(b".partial_image")


def reported_s(content: bytes) -> float:
    """Return the seconds of waiting and running that an answer with images reports, of the image that took most."""
    timings = [each["timings"] for each in json.loads(content)["data"]]
    return float(max(each["queued_s"] + each["running_s"] for each in timings))
