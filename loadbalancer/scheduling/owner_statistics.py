"""Work, tasks and tokens by the owner of the API key and by model. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

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
        #: Ended tasks by outcome.
        self.ended: Counter[str] = Counter()


class OwnerStatistics:
    """The use of all owners."""

    def __init__(self) -> None:
        self._usage: dict[tuple[str, str], OwnerUsage] = {}

    @property
    def usage(self) -> Mapping[tuple[str, str], OwnerUsage]:
        """The use by model and owner."""
        return self._usage

    def on_end(self, model: str, owner: str, outcome: str, work_s: float, tokens: int) -> None:
        """Count an ended task."""
        usage = self._usage.get((model, owner))
        if usage is None:
            owner = owner if len(self._usage) < MAX_PAIRS else REMAINDER
            usage = self._usage.setdefault((model, owner), OwnerUsage())
        usage.work_s += work_s
        usage.tokens += tokens
        usage.ended[outcome] += 1
