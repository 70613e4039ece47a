"""Restart delays after crashes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from controller.types import CrashBackoff, Exit, Replica, Stage

#: A worker that served for this long was healthy, so its replacement starts without a delay.
HEALTHY_AFTER_S = 30.0
#: The delay ends when a worker that was started after the crash has served for this long.
_RESET_AFTER_S = 60.0
_MAX_BACKOFF_S = 60.0


def after_exit(crashes: CrashBackoff, ended: Exit) -> tuple[CrashBackoff, bool]:
    """Return the model's crash record after this exit, and whether the exit was a crash.

    A worker that was drained, or that exits with status 0, did not crash. One that dies before it has served for
    `HEALTHY_AFTER_S` delays the next start by 1, 2, 4, ... 60 s. One that dies later is replaced at once.
    """
    child = ended.process
    if child.drained_at is not None or ended.status == 0:
        return crashes, False
    if child.ready_at is not None and ended.at - child.ready_at >= HEALTHY_AFTER_S:
        return CrashBackoff(), True
    return record_crash(crashes, ended.at), True


def record_crash(crashes: CrashBackoff, at: float) -> CrashBackoff:
    count = crashes.count + 1
    return CrashBackoff(count, at + min(2.0 ** (count - 1), _MAX_BACKOFF_S), at)


def decay(crashes: CrashBackoff, replicas: Sequence[Replica], now: float) -> CrashBackoff:
    """Return the record; it is reset when a worker that became ready after the last crash has stayed healthy."""
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
