"""Rolling update: replaces workers that are too old or run with outdated settings, one at a time. Pure.

A new worker starts first. Once it is ready, the oldest outdated worker drains; after its exit the next new one starts.
Without a free device an outdated worker must drain first. A crash of a new worker stops the update, so that the old
workers keep serving. The update has no state: like the plan, it is computed again from each observation.
"""

from __future__ import annotations

import math
import operator
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.types import CrashBackoff, Replica, Stage

#: Maximum share of the allowed age by which a worker is replaced early, so that workers of one start do not go at once.
_EARLIER = 0.1


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    """The conditions under which a model's workers are outdated."""

    #: Digest of the current settings of workers; empty: not compared.
    generation: str = ""
    max_age_s: float | None = None
    #: Workers started before this time are replaced, by command.
    renew_before: float | None = None
    #: Workers that are replaced by command, by name.
    renew_workers: frozenset[str] = frozenset()


_NEVER = UpdatePolicy()
_STARTED_AT = operator.attrgetter("process.started_at")


def outdated(replicas: Sequence[Replica], policy: UpdatePolicy, now: float) -> dict[str, str]:
    """Return the outdated workers with the reason, the oldest first; draining ones excluded."""
    if policy == _NEVER:
        return {}
    found, before = {}, -math.inf if policy.renew_before is None else policy.renew_before
    for replica in sorted((r for r in replicas if r.stage is not Stage.DRAINING), key=_STARTED_AT):
        child = replica.process
        if policy.generation and child.generation != policy.generation:
            found[child.id] = "its settings have changed"
        elif child.id in policy.renew_workers or child.started_at < before:
            found[child.id] = "by command"
        elif policy.max_age_s is not None and now - child.started_at >= _allowed_s(child.id, policy.max_age_s):
            found[child.id] = f"older than max_worker_age_s ({policy.max_age_s:g}) allows"
    return found


def surge(replicas: Sequence[Replica], desired: int, old: Mapping[str, str], crashes: CrashBackoff) -> int:
    """Return the workers allowed above the decision: one during a replacement."""
    staying = [replica for replica in replicas if replica.stage is not Stage.DRAINING]
    if not any(replica.process.id in old for replica in staying):
        return 0
    # One that is outdated itself, because the settings changed again, keeps its place, too: an old one that serves
    # would have to leave for it.
    if any(replica.stage is Stage.STARTING for replica in staying) and len(staying) > desired:
        return 1
    steady = len(staying) <= desired and all(replica.stage is Stage.READY for replica in replicas)
    return int(steady and crashes.count == 0)


def next_to_replace(replicas: Sequence[Replica], desired: int, old: Mapping[str, str]) -> list[Replica]:
    """Return the outdated workers that can be drained because enough others are ready, the oldest first."""
    ready = [replica for replica in replicas if replica.stage is Stage.READY]
    going = sorted((r for r in ready if r.process.id in old), key=_STARTED_AT)
    return going[: max(len(ready) - desired, 0)]


def without_surge(replicas: Sequence[Replica], desired: int, old: Mapping[str, str]) -> Sequence[Replica]:
    """Return the workers as a policy counts them: without the surplus of a replacement."""
    staying = [replica for replica in replicas if replica.stage is not Stage.DRAINING]
    if not old or len(staying) <= desired:
        return replicas
    starting = [r for r in staying if r.stage is Stage.STARTING]
    surplus = max(starting, key=_STARTED_AT, default=None) or next(iter(next_to_replace(staying, desired, old)), None)
    return [replica for replica in replicas if replica is not surplus]


def describe_progress(replicas: Sequence[Replica], old: Mapping[str, str], crashes: CrashBackoff) -> str:
    """Return the progress of the rolling update in words; empty without one."""
    if not old:
        return ""
    staying = sum(replica.stage is not Stage.DRAINING for replica in replicas)
    text = f"{len(old)} of {staying} to be replaced: {next(iter(old.values()))}"
    if crashes.count:
        text += f"; stopped by {'a crash' if crashes.count == 1 else f'{crashes.count} crashes in a row'}"
    return text


def _allowed_s(worker: str, max_age_s: float) -> float:
    """Return the worker's maximum age: different between workers, constant for each."""
    share = zlib.crc32(worker.encode()) / 2**32
    return max_age_s * (1 - _EARLIER * share)
