"""Restart delays after crashes. Pure."""

from __future__ import annotations

import dataclasses
import re
import signal
from collections.abc import Sequence
from typing import Literal

from configs.devices import machine_of
from controller.types import CrashBackoff, Replica, Stage
from host.types import Exit
from wire.messages import EXIT_ORPHANED

#: A worker that served for this long was healthy, so its replacement starts without a delay.
HEALTHY_AFTER_S = 30.0
#: The delay ends when a worker that was started after the crash has served for this long.
_RESET_AFTER_S = 60.0
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 1.0, 60.0
#: A power of two above 2^1023 is no number.
_MAX_DOUBLINGS = 64
#: Crashes on one machine within this time have one cause.
_TOGETHER_S = 2.0
#: Status of a worker that the balancer does not accept.
_EXIT_REJECTED = 2
#: How a worker crashed.
CrashKind = Literal["start_failed", "unresponsive", "killed", "signal", "exit_status", "unknown"]
#: After this many equal failures in a row the next start is expected to fail as well.
EQUAL_FAILURES = 3


def after_exit(crashes: CrashBackoff, ended: Exit) -> tuple[CrashBackoff, bool]:
    """Return the model's crash record after this exit, and whether the exit was a crash.

    A worker that was drained did not crash, nor did one whose machine failed. Once it has served, it may also exit with
    status 0, or because its balancer is silent.
    One that dies before it has served for `HEALTHY_AFTER_S` delays the next start by 1, 2, 4, ... 60 s.
    One that dies later is replaced at once. Several that served on one machine and die together count as one crash:
    their cause is that machine.
    """
    child = ended.process
    # A standby worker exits like this while it waits. Others serve first, unless the engine ends the process.
    may_exit = child.spare or child.ready_at is not None or ended.has_served
    if child.drained_at is not None or ended.machine_failed or (may_exit and ended.status in (0, EXIT_ORPHANED)):
        return crashes, False
    if child.ready_at is not None and ended.at - child.ready_at >= HEALTHY_AFTER_S:
        return CrashBackoff(), True
    failure, machine = _start_failure(ended), machine_of(child.device)
    is_together = child.started_at < crashes.last_at > ended.at - _TOGETHER_S and crashes.machine == machine
    if is_together and not failure and not crashes.reason:
        return crashes, True
    return dataclasses.replace(record_crash(crashes, ended.at, failure), machine=machine), True


def crash_kind(ended: Exit, *, is_ordered: bool = False) -> CrashKind:
    """Return how the worker crashed, as one of a few words. `is_ordered`: the plan had it killed."""
    if _start_failure(ended):
        return "start_failed"
    if is_ordered:
        return "unresponsive"
    if ended.status is None:
        return "unknown"
    if ended.status == -signal.SIGKILL:
        return "killed"
    return "signal" if ended.status < 0 else "exit_status"


def record_crash(crashes: CrashBackoff, at: float, start_failure: str = "") -> CrashBackoff:
    """Return the record with one more crash. `start_failure`: why the start failed; empty if the worker was ready."""
    count = crashes.count + 1
    equal = start_failure != "" and _kind(start_failure) == _kind(crashes.reason)
    failures = crashes.equal_failures + 1 if equal else int(start_failure != "")
    retry_at = at + doubled_s(_FIRST_BACKOFF_S, count - 1, _MAX_BACKOFF_S)
    return CrashBackoff(count, retry_at, at, start_failure, failures)


def doubled_s(first_s: float, times: int, max_s: float) -> float:
    """Return `first_s` doubled so many times, at most `max_s`. There is no limit on `times`."""
    return min(first_s * 2.0 ** min(times, _MAX_DOUBLINGS), max_s)


def _start_failure(ended: Exit) -> str:
    """Return why the worker's start failed; empty if it was ready."""
    if ended.process.ready_at is not None or (ended.has_served and ended.status != _EXIT_REJECTED):
        return ""
    if ended.start_failure or ended.status is None:
        return ended.start_failure
    if ended.status == -signal.SIGKILL:
        return "its worker was killed while it loaded: main memory was short, or workers.start_timeout_s too short"
    how = f"by signal {-ended.status}" if ended.status < 0 else f"with exit status {ended.status}"
    return f"its worker ended {how} while it loaded; its log says more"


def _kind(reason: str) -> str:
    """Return the reason without its numbers, such as an amount of free memory."""
    return re.sub(r"[\d,.]+", "#", reason)


def cannot_start(crashes: CrashBackoff, desired: int, replicas: Sequence[Replica], now: float) -> str:
    """Return why no worker of the model can start; empty while one serves, or may soon.

    If no worker is desired, the next request tries again, once the delay is over.
    """
    if crashes.equal_failures < EQUAL_FAILURES or any(replica.stage is Stage.READY for replica in replicas):
        return ""
    return crashes.reason if desired > 0 or now < crashes.retry_at else ""


def decay(crashes: CrashBackoff, replicas: Sequence[Replica], now: float) -> CrashBackoff:
    """Return the record; it is reset when a worker that became ready after the last crash has stayed healthy.

    The start failures are reset as soon as one start succeeds.
    """
    if crashes.reason and any(
        replica.process.ready_at is not None and replica.process.ready_at > crashes.last_at for replica in replicas
    ):
        crashes = dataclasses.replace(crashes, reason="", equal_failures=0)
    healthy = (
        replica.stage is Stage.READY
        and replica.process.ready_at is not None
        and crashes.last_at < replica.process.ready_at <= now - _RESET_AFTER_S
        for replica in replicas
    )
    return CrashBackoff() if any(healthy) else crashes


def pending_replacements(lost: int, desired: int, replicas: Sequence[Replica]) -> int:
    """Return how many of the lost workers have no replacement yet."""
    present = sum(replica.stage is not Stage.DRAINING for replica in replicas)
    return max(min(lost, desired - present), 0)
