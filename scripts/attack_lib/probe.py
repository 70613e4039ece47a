"""A process that asks for `/healthz` on new connections and samples the memory of the balancer.

    python -m scripts.attack_lib.probe PORT PID

It is a process of its own, because the threads of an attack would delay it. It ends when its standard input does, and
prints what it measured as JSON. It imports only the standard library: one starts for each attack.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import select
import sys
import time
from pathlib import Path

_INTERVAL_S = 0.02
_TIMEOUT_S = 30


@dataclasses.dataclass
class ProbeResult:
    """What was measured."""

    #: Longest answer.
    stall_s: float = 0.0
    #: Health checks without an answer, or with another status than 200.
    refused: int = 0
    before_bytes: int = 0
    peak_bytes: int = 0


def rss_bytes(pid: int | None) -> int:
    """Resident memory of the process; 0 if there is none."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * 4096


def main() -> None:
    port, pid = int(sys.argv[1]), int(sys.argv[2]) or None
    result = ProbeResult(before_bytes=rss_bytes(pid))
    result.peak_bytes = result.before_bytes
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], _INTERVAL_S)[0]:
        started = time.monotonic()
        result.refused += not _is_healthy(port)
        result.stall_s = max(result.stall_s, time.monotonic() - started)
        result.peak_bytes = max(result.peak_bytes, rss_bytes(pid))
    print(json.dumps(dataclasses.asdict(result)), flush=True)


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()
