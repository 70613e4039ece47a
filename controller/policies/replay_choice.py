"""Chooses how long workers are held, and their least number, by replays of the recent arrivals. Pure.

The normal setting is replayed too. While it serves enough requests in time there, it is used. Where it fails clearly,
as with periods or bunches that a start cannot follow, the cheapest setting that would have kept the promise is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from configs.scaling import Scaling
from controller.policies.queueing import ArrivalHistory, WorkVariation, backlog_inputs
from controller.policies.replay import Replay, ReplayStep, ReplayTask, advance, begin, replay_tasks
from controller.types import Observation, Queue, WorkerLimits
from wire.snapshot import ArrivalBucket

#: Least times in seconds before a scale-down. The first is the normal one.
_HOLDS_S = (60.0, 600.0, 1800.0)
#: Least numbers of workers.
_FLOORS = (2, 3, 4, 6, 8, 11, 16, 24, 36, 54)
#: Time constants of the scores in seconds.
_MEMORY_S, _RECENT_S = 4 * 3600.0, 3600.0
#: Until `startup_hold_s` nothing is chosen, and late tasks do not raise the margin: nobody could know the traffic.
#: Until this multiple of it the second hold applies, and a setting with fewer workers may not be chosen.
_LEARNING_HOLDS = 6.0
#: The normal setting fails if late tasks exceed these multiples of the allowed ones, by more than chance explains.
_FAILS, _FAILS_RECENTLY, _CHANCE = 3.0, 8.0, 3.0
#: It is used again below these multiples.
_WORKS, _WORKS_RECENTLY = 1.5, 2.0
#: Late tasks within the last hour that no decision depends on.
_FEW = 2.0
#: Part of the allowed late tasks that another setting may use.
_SAFETY = 0.9
#: Worker seconds that a start, and a late task beyond the allowed ones, count as.
_START_COST_S, _LATE_COST_S = 30.0, 600.0
#: More tasks in one step are not replayed: it would take long, and the arrivals of so many vary little.
_MAX_TASKS = 1200
#: Another setting must be cheaper by this factor.
_CHEAPER = 1.1
#: The setting without replays. So many arrivals need many workers, whose number varies more by chance: a longer hold
#: than the normal one starts less than half as many, for about the same GPU-hours.
_NOT_REPLAYED = Replay(hold_s=120.0, floor=0, workers=0)


@dataclass(frozen=True, slots=True)
class ReplayMemory:
    """The replays and their common state. Times are in seconds of the balancer's uptime."""

    replays: tuple[Replay, ...] = ()
    selected: int = 0
    #: The last whole second whose arrivals were replayed.
    second: int = -1
    age_s: float = 0.0
    #: Decayed counts of arrivals.
    total: float = 0.0
    recent_total: float = 0.0
    variation: WorkVariation = field(default_factory=WorkVariation)
    history: ArrivalHistory = field(default_factory=ArrivalHistory)

    @property
    def current(self) -> Replay:
        """Return the replay whose setting is in use, or the setting of models that are not replayed."""
        return self.replays[self.selected] if self.replays else _NOT_REPLAYED

    def preventable(self, late: int, startup_hold_s: float) -> int | None:
        """Return how many of the late tasks since the last decision were in time in some replay.

        Within `startup_hold_s` it is none: replays with a floor had workers that the model itself could not have yet.
        The result is None while a setting other than the normal one is in use.
        """
        if self.selected and self.age_s >= _LEARNING_HOLDS * startup_hold_s:
            return None
        if self.replays and self.age_s <= startup_hold_s:
            return 0
        return max(late - min((one.new_late for one in self.replays), default=0), 0)

    def counted(self, queue: Queue, reported_s: float) -> tuple[ReplayMemory, Sequence[ArrivalBucket]]:
        """Return the memory with the new arrivals and their work counted, and these: all of whole seconds.

        The balancer reports those of the last `reported_s` seconds. Its restart begins anew.
        """
        known = self if queue.uptime_s >= self.second else self._restarted(-1)
        end = int(queue.uptime_s)
        new = [bucket for bucket in queue.recent_arrivals if known.second < bucket.second < end]
        elapsed_s = min(max(end - 1 - known.second, 0), reported_s)
        history = known.history.updated(sum(bucket.tasks for bucket in new), elapsed_s)
        return replace(known, variation=known.variation.updated(new), history=history), new

    def without_replays(self, queue: Queue) -> ReplayMemory:
        """Return the memory up to now without replays."""
        return self._restarted(int(queue.uptime_s) - 1)

    def _restarted(self, second: int) -> ReplayMemory:
        """Return what is known of the traffic, with `second` as the last one that counts."""
        return ReplayMemory(second=second, variation=self.variation, history=self.history)


def update(
    memory: ReplayMemory,
    buckets: Sequence[ArrivalBucket],
    observation: Observation,
    queue: Queue,
    scaling: Scaling,
    limits: WorkerLimits,
    by_rate: int,
    to_keep: int,
    expected: int,
) -> ReplayMemory:
    """Return the memory after a replay up to now, with the setting to use.

    `buckets` has the new arrivals of `ReplayMemory.counted`. `by_rate` and `to_keep` are as in `ReplayStep`. `expected`
    is the number of workers that was decided last, with which replays begin.
    """
    end_s, count = int(queue.uptime_s), sum(bucket.tasks for bucket in buckets)
    tasks = replay_tasks(buckets, queue.mean_work_s or 0.0, scaling.slo.max_wait_s)
    elapsed_s = max(end_s - 1 - memory.second, 0)
    # A decision between two intervals has few arrivals, also that of a busy model, whose replays may not begin then.
    part = 1.0 if memory.replays else min(elapsed_s / scaling.interval_s, 1.0)
    if count > part * _MAX_TASKS and len(tasks) > part * (_MAX_TASKS if memory.replays else _MAX_TASKS / 2):
        return memory.without_replays(queue)
    if not memory.replays:
        return replace(memory, replays=_begin(expected, queue, limits, end_s), selected=1, second=end_s - 1)
    memory = replace(memory, replays=_with_floors(memory.replays, limits))
    step = _step(memory, observation, queue, scaling, limits, by_rate, to_keep, tasks)
    memory = replace(
        memory,
        replays=tuple(advance(one, step) for one in memory.replays),
        second=max(end_s - 1, memory.second),
        age_s=memory.age_s + elapsed_s,
        total=memory.total * step.decay + count,
        recent_total=memory.recent_total * step.recent_decay + count,
    )
    return replace(memory, selected=_select(memory, 1 - scaling.slo.percentile / 100, scaling.startup_hold_s))


def _begin(expected: int, queue: Queue, limits: WorkerLimits, now: float) -> tuple[Replay, ...]:
    """Return replays without arrivals. Those with a floor have its workers already, which shows its use at once."""
    workers, batch = max(expected, 1), queue.batch_cap or 1
    settings = [(hold_s, 0) for hold_s in _HOLDS_S] + [(_HOLDS_S[0], floor) for floor in _floors(limits)]
    return tuple(begin(hold_s, floor, max(workers, floor), batch, now) for hold_s, floor in settings)


def _floors(limits: WorkerLimits) -> list[int]:
    return [floor for floor in _FLOORS if limits.min_workers < floor <= limits.max_workers]


def _with_floors(replays: tuple[Replay, ...], limits: WorkerLimits) -> tuple[Replay, ...]:
    """Return the replays with those of floors that the bounds allow now. Each begins as the next lower one is."""
    for floor in _floors(limits):
        if all(one.floor != floor for one in replays):
            lower = max((one for one in replays if one.floor < floor), key=lambda one: (one.floor, -one.hold_s))
            replays = (*replays, replace(lower, floor=floor))
    return replays


def _step(
    memory: ReplayMemory,
    observation: Observation,
    queue: Queue,
    scaling: Scaling,
    limits: WorkerLimits,
    by_rate: int,
    to_keep: int,
    tasks: Sequence[ReplayTask],
) -> ReplayStep:
    end_s = max(int(queue.uptime_s), memory.second + 1)
    # After a longer gap, as between two controllers, the arrivals before are not known.
    start_s = max(memory.second + 1, end_s - int(scaling.reported_arrivals_s))
    cold_start_s = observation.cold_start_s
    return ReplayStep(
        start_s=start_s,
        end_s=end_s,
        tasks=tasks,
        by_rate=by_rate,
        to_keep=to_keep,
        batch=queue.batch_cap or 1,
        slowdown=queue.batch_slowdown,
        min_workers=limits.min_workers,
        max_workers=limits.max_workers,
        backlog=backlog_inputs(queue, scaling, cold_start_s, believes_step=True),
        plain_backlog=backlog_inputs(queue, scaling, cold_start_s, believes_step=False),
        decay=math.exp(-(end_s - start_s) / _MEMORY_S),
        recent_decay=math.exp(-(end_s - start_s) / _RECENT_S),
        may_shrink=queue.uptime_s >= scaling.startup_hold_s,
    )


def _select(memory: ReplayMemory, allowed: float, startup_hold_s: float) -> int:
    """Return the number of the setting to use; `allowed` is the fraction of late tasks that the promise allows."""
    normal, selected = memory.replays[0], memory.selected
    late, recent = allowed * memory.total, allowed * memory.recent_total
    is_learning = memory.age_s < _LEARNING_HOLDS * startup_hold_s
    fails = (
        normal.late - _CHANCE * math.sqrt(normal.late) > _FAILS * late
        or normal.recent_late - _CHANCE * math.sqrt(normal.recent_late) > _FAILS_RECENTLY * recent + _FEW
    )
    if memory.age_s < startup_hold_s or (not fails and (selected == 0 or is_learning)):
        return selected
    works = normal.late <= _WORKS * late and normal.recent_late <= _WORKS_RECENTLY * recent + _FEW
    return 0 if works and not fails else _cheapest(memory, late, recent, is_learning)


def _cost_s(replay: Replay) -> float:
    return replay.cost_s + _START_COST_S * replay.starts


def _cheapest(memory: ReplayMemory, late: float, recent: float, is_learning: bool) -> int:
    """Return the cheapest setting besides the normal one that keeps the promise, or the one that comes closest."""
    replays, current = memory.replays, memory.current

    def keeps(one: Replay) -> bool:
        return one.late + 0.5 * math.sqrt(one.late) <= _SAFETY * late and one.recent_late <= _SAFETY * recent + _FEW

    def loss_s(one: Replay) -> float:
        excess = max(one.late - _SAFETY * late, 0.0) + 2 * max(one.recent_late - _SAFETY * recent, 0.0)
        return _cost_s(one) + _LATE_COST_S * excess

    others = [
        number for number, one in enumerate(replays) if number and (not is_learning or _cost_s(one) >= _cost_s(current))
    ] or list(range(len(replays)))
    keeping = [number for number in others if keeps(replays[number])]
    best = min(keeping or others, key=lambda number: (_cost_s if keeping else loss_s)(replays[number]))
    is_cheaper = _CHEAPER * _cost_s(replays[best]) < _cost_s(current)
    return best if memory.selected == 0 or memory.selected not in keeping or is_cheaper else memory.selected
