"""The load generator `wrk` where it is installed: https://github.com/wg/wrk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

from scripts.bench.serving.peers_lib.deployment import Measurement

_SCRIPT = Path(__file__).with_name("wrk_post.lua")
_TIMEOUT_S = 60
_PREFIX = "SUMMARY "


class _Summary(msgspec.Struct):
    """What `wrk_post.lua` prints."""

    requests: int
    bytes: int
    duration_us: int
    p50_us: int
    p99_us: int
    max_us: int
    connect: int
    read: int
    write: int
    timeout: int
    status: int


def is_installed() -> bool:
    return shutil.which("wrk") is not None


def run(url: str, body: bytes, headers: Mapping[str, str], connections: int, seconds: float) -> Measurement:
    """Keep the connections busy with POST requests, or with GET where the body is empty.

    `seconds` are rounded to whole ones, at least 1. Raises `RuntimeError` if `wrk` fails.
    """
    whole = max(1, round(seconds))
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{whole}s", "--latency"]
    command += ["--timeout", f"{_TIMEOUT_S}s", "--script", str(_SCRIPT), url, "--", body.decode()]
    command += [part for pair in headers.items() for part in pair]
    done = subprocess.run(command, capture_output=True, text=True, timeout=whole + 2 * _TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"wrk failed: {(done.stderr or done.stdout).strip()}")
    return parse(done.stdout)


def parse(output: str) -> Measurement:
    """Return the measurement in wrk's output. Refused requests are among its errors: it does not tell statuses apart.

    Raises `RuntimeError` if the summary is missing.
    """
    lines = [line for line in output.splitlines() if line.startswith(_PREFIX)]
    if not lines:
        raise RuntimeError(f"no summary in wrk's output: {output[-500:]!r}")
    summary = msgspec.json.decode(lines[-1].removeprefix(_PREFIX), type=_Summary)
    answered, seconds = summary.requests - summary.status, summary.duration_us / 1e6
    return Measurement(
        per_s=answered / seconds,
        p50_ms=summary.p50_us / 1000,
        p99_ms=summary.p99_us / 1000,
        answered=answered,
        errors=summary.status + summary.connect + summary.read + summary.write + summary.timeout,
        client="wrk",
    )
