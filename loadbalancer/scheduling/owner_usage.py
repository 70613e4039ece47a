"""What each owner has used of each model. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from loadbalancer.scheduling.task_state import TaskState

OUTCOMES = (TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED)
#: Owners are the names of API keys, of which there may be many in time. Those beyond this number of pairs of model and
#: owner are counted together.
MAX_PAIRS = 2000
#: No API key has this name.
REMAINDER = "(others)"


class OwnerUsage:
    """What one owner has used of one model."""

    __slots__ = ("ended", "tokens", "work_s")

    def __init__(self) -> None:
        #: Seconds of work that workers spent on its tasks, as if each ran in a batch of one.
        self.work_s = 0.0
        #: Generated tokens.
        self.tokens = 0
        #: Ended tasks by outcome. A plain dictionary: those of `collections` add twice as slowly.
        self.ended: dict[TaskState, int] = dict.fromkeys(OUTCOMES, 0)


class OwnerStatistics:
    """The use of all owners."""

    def __init__(self) -> None:
        self._models: defaultdict[str, dict[str, OwnerUsage]] = defaultdict(dict)
        self._pairs = 0

    @property
    def usage(self) -> Mapping[tuple[str, str], OwnerUsage]:
        """The use by model and owner."""
        return {(model, owner): usage for model, own in self._models.items() for owner, usage in own.items()}

    def of_model(self, model: str) -> Mapping[str, OwnerUsage]:
        """Return the use of this model by owner, now and later."""
        return self._models[model]

    def add(self, model: str, owner: str) -> OwnerUsage:
        """Return where to count the use by an owner that has not used the model before."""
        self._pairs += 1
        return self._models[model].setdefault(owner if self._pairs <= MAX_PAIRS else REMAINDER, OwnerUsage())
