r"""Lines of access logs: this server's own in JSON, and nginx's.

Those of nginx have the combined format, with or without `$request_time` at the end.

    log_format timed '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
                     '"$http_referer" "$http_user_agent" $request_time';

The log has the time of the answer. With `$request_time`, the request arrived that much earlier, and its work is that
time: too much by what it waited. Only answered POST requests count, as those ask a model; `-` is no request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_LINE = re.compile(
    rf'\S+ \S+ [^\[]*\[(?P<time>[^\]]+)\] "(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{{3}}) (?:\d+|-)'
    rf" {_QUOTED} {_QUOTED}(?P<rest>.*)"
)
#: `$request_time` has milliseconds. It may have a name, as in `rt=0.120`, or quotes.
_REQUEST_TIME = re.compile(r'(?:^|[\s"=:])(?P<seconds>\d+\.\d{3})(?=$|[\s",])')
_TIME = "%d/%b/%Y:%H:%M:%S %z"
_FIRST_ERROR = 400


#: What the balancer's access log calls itself.
_OWN_LOGGER = "loadbalancer.access"


def asks_a_model(row: Mapping[str, Any]) -> bool:
    """Return whether a row of JSON counts: any of a trace, but of this server's log only answered work for a model."""
    if "logger" not in row or "level" not in row:
        return True
    is_answered = isinstance(row.get("status"), int) and row["status"] < _FIRST_ERROR
    return row["logger"] == _OWN_LOGGER and is_answered and bool(row.get("model"))


def is_access_log(text: str) -> bool:
    """Return whether the text begins like an access log."""
    return _LINE.match(text.lstrip().split("\n", 1)[0]) is not None


def parse_line(line: str) -> Mapping[str, Any] | None:
    """Return the request of a line as a row of a trace; None for one that asked no model.

    Raises `ValueError` if the line has another format.
    """
    found = _LINE.match(line)
    if found is None:
        raise ValueError("this is not nginx's combined format")
    try:
        ended_at = datetime.strptime(found["time"], _TIME).timestamp()
    except ValueError:
        raise ValueError(f"[{found['time']:.40}] is not a time such as 28/Nov/2026:13:05:55 +0000") from None
    if not found["request"].startswith("POST ") or int(found["status"]) >= _FIRST_ERROR:
        return None
    took = _REQUEST_TIME.search(found["rest"])
    if took is None:
        return {"arrived": ended_at}
    return {"arrived": ended_at - float(took["seconds"]), "duration_s": took["seconds"]}
