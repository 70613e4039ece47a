"""Runs wrk, the HTTP load generator, against one URL."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

_SCRIPT = """
wrk.method = "%s"
wrk.body = %s
wrk.headers["Content-Type"] = "application/json"
done = function(summary, latency, requests)
  io.write(string.format('{"requests": %%d, "seconds": %%f, "bytes": %%d, "errors": %%d, "p50_ms": %%f, "p99_ms": %%f}',
    summary.requests, summary.duration / 1e6, summary.bytes,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
      + summary.errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class WrkResult:
    """What a run has shown."""

    requests_per_s: float
    bytes_per_s: float
    p50_ms: float
    p99_ms: float
    #: Failed connections, reads and writes, time-outs, and responses beyond 399.
    errors: int
    #: CPU time of the measured processes per request, by name.
    cpu_us: dict[str, float]


def is_installed() -> bool:
    return shutil.which("wrk") is not None


def run_wrk(
    url: str, connections: int, seconds: float, pids: dict[str, int], *, body: bytes | None = None
) -> WrkResult:
    """Send requests on so many connections, one at a time on each. With a body they are POST.

    `pids` are processes whose CPU time is measured, by name.
    """
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    method, quoted = ("GET", "nil") if body is None else ("POST", json.dumps(body.decode()))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT % (method, quoted))
        script.flush()
        before = {name: _cpu_s(process) for name, process in processes.items()}
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(Path(script.name)), url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    values = json.loads(output[output.rindex("{") :])
    requests = max(values["requests"], 1)
    cpu_us = {name: 1e6 * (_cpu_s(process) - before[name]) / requests for name, process in processes.items()}
    seconds = values["seconds"]
    return WrkResult(
        values["requests"] / seconds,
        values["bytes"] / seconds,
        values["p50_ms"],
        values["p99_ms"],
        values["errors"],
        cpu_us,
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
