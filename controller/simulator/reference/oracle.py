"""The cheapest schedule of workers that is found when all future requests are known.

The schedules of both searches run in the simulator, so the result is an upper bound of the optimum. `lower_bound` has
a lower one.
"""

from __future__ import annotations

from collections.abc import Callable

from controller.simulator.reference.beam_search import BeamSearch
from controller.simulator.reference.local_search import LocalSearch
from controller.simulator.reference.schedule_agent import WorkerSchedule, simulate_schedule
from controller.simulator.results import PolicyResult, model_results
from controller.simulator.scenarios import Scenario
from controller.simulator.simulator import ignore_progress

#: Range of the cost of a late request, in its mean work and start time: from a part of the work to several starts.
_LOWEST_COST, _HIGHEST_COST = 0.2, 10.0
#: Costs of late requests to try.
_ROUNDS = 7
#: Costs to try from the schedules of the beam search, from this factor on, each lower than the one before.
_BEAM_FACTOR, _BEAM_ROUNDS, _COST_STEP = 1.6, 8, 0.8
#: The beam search is used if requests take at most this long.
_MAX_BEAM_WORK_S = 30.0


def best_schedule(
    scenario: Scenario, in_slo: float | None = None, on_progress: Callable[[float], None] = ignore_progress
) -> PolicyResult | None:
    """Return the simulated result of the cheapest schedule found with a share `in_slo` in time; None if none is found.

    The default share is that of `slo.percentile`. `on_progress` receives the progress of the search, from 0 to 1.
    """
    (name,) = scenario.profiles
    goal = scenario.scalings[name].slo.percentile / 100 if in_slo is None else in_slo
    work, profile = scenario.traffic[name].work, scenario.profiles[name]
    mean_s = sum(work) / max(len(work), 1)
    search, found = LocalSearch(scenario), _FoundSchedules(scenario, goal)
    if not found.add(search.schedule):
        search.start_with_all()
        if not found.add(search.schedule):
            return None
    low, high = _LOWEST_COST * max(mean_s, 1.0), _HIGHEST_COST * (mean_s + profile.expected_start_s())
    for number in range(_ROUNDS):
        late_cost_s = (low * high) ** 0.5
        if found.add(search.cheapest(late_cost_s)):
            high = late_cost_s
        else:
            low = late_cost_s
            search.start_from(found.cheapest.workers, found.cheapest.stage_s)
        on_progress((number + 1) / (_ROUNDS + _BEAM_ROUNDS))
    if mean_s * profile.slowdowns[-1] <= _MAX_BEAM_WORK_S and scenario.targets()[name].initial_workers:
        beam = BeamSearch(scenario)
        high *= _BEAM_FACTOR
        for number in range(_BEAM_ROUNDS):
            schedule = beam.cheapest(high)
            found.add(schedule)
            search.start_from(schedule.workers, schedule.stage_s)
            if not found.add(search.cheapest(high)):
                break
            high *= _COST_STEP
            on_progress((_ROUNDS + number + 1) / (_ROUNDS + _BEAM_ROUNDS))
    return found.result


class _FoundSchedules:
    """The cheapest schedule that meets the goal, as simulated."""

    def __init__(self, scenario: Scenario, goal: float) -> None:
        self._scenario = scenario
        self._goal = goal
        self.result: PolicyResult | None = None

    def add(self, schedule: WorkerSchedule) -> bool:
        """Simulate a schedule. Returns whether it meets the goal."""
        (result,) = model_results("best known", simulate_schedule(self._scenario, schedule))
        if result.in_slo < self._goal or result.unserved:
            return False
        if self.result is None or result.gpu_hours < self.result.gpu_hours:
            self.result, self.cheapest = result, schedule
        return True
