"""Jobs that wait on disk for room in the queue: who goes next. Pure.

Owners take turns, so that a thousand jobs of one do not stand before the first of another; the jobs of an owner go by
priority, then by age.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from sortedcontainers import SortedDict

#: Priority (negated), then the order of arrival.
_Place = tuple[int, int]


class JobQueue:
    """The waiting jobs of one model."""

    def __init__(self) -> None:
        self._owners: OrderedDict[str, SortedDict[_Place, str]] = OrderedDict()
        self._places: dict[str, tuple[str, _Place]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, job: str) -> bool:
        return job in self._places

    def __repr__(self) -> str:
        return f"<JobQueue {len(self)} jobs of {len(self._owners)} owners>"

    def push(self, job: str, owner: str, priority: int, seq: int) -> None:
        """Add a job; `seq` grows with every job that arrives."""
        place = (-priority, seq)
        self._owners.setdefault(owner, SortedDict())[place] = job
        self._places[job] = owner, place

    def first(self) -> str | None:
        """Whose turn it is."""
        return next((waiting.peekitem(0)[1] for waiting in self._owners.values()), None)

    def take(self, job: str) -> None:
        """The job leaves, and its owner's turn is over. Raises `KeyError` if it does not wait here."""
        owner, place = self._places.pop(job)
        waiting = self._owners[owner]
        del waiting[place]
        if waiting:
            self._owners.move_to_end(owner)
        else:
            del self._owners[owner]

    def position(self, job: str) -> int:
        """How many jobs go before it. Raises `KeyError` if it does not wait here."""
        owner, place = self._places[job]
        turn = int(self._owners[owner].bisect_left(place))
        before = 0
        earlier = True
        for other, waiting in self._owners.items():
            if other == owner:
                before += turn
                earlier = False
            else:
                before += min(len(waiting), turn + earlier)
        return before


class JobAdmission:
    """Which jobs are in the queue and which wait for it: images of jobs fill no more than `room` of a model's queue."""

    def __init__(self, models: Iterable[str], room: int) -> None:
        self._room = room
        self._waiting = {model: JobQueue() for model in models}
        #: Images of jobs that have had their turn.
        self._entered: Counter[str] = Counter()
        #: Model and images of each job.
        self._jobs: dict[str, tuple[str, int]] = {}

    def __repr__(self) -> str:
        return f"<JobAdmission entered {dict(self._entered)}, waiting {self._waiting}>"

    def push(self, job: str, model: str, images: int, owner: str, priority: int, seq: int) -> None:
        """A job arrives; see `JobQueue.push`. Raises `KeyError` for a model that is not known."""
        self._waiting[model].push(job, owner, priority, seq)
        self._jobs[job] = model, images

    def next(self, model: str) -> list[str]:
        """The jobs that enter now. One that is larger than the room enters alone."""
        entering: list[str] = []
        while (job := self._waiting[model].first()) is not None:
            images = self._jobs[job][1]
            if self._entered[model] and self._entered[model] + images > self._room:
                break
            self.enter(job)
            entering.append(job)
        return entering

    def enter(self, job: str) -> None:
        """A waiting job enters, whether there is room or not. Raises `KeyError` if it does not wait."""
        model, images = self._jobs[job]
        self._waiting[model].take(job)
        self._entered[model] += images

    def leave(self, job: str) -> None:
        """The job has ended, wherever it was. One that is not known is ignored."""
        model, images = self._jobs.pop(job, ("", 0))
        if model and job in self._waiting[model]:
            self._waiting[model].take(job)
        elif model:
            self._entered[model] -= images

    def position(self, job: str) -> int:
        """What is before a waiting job: images that have entered, and jobs. Raises `KeyError` if it does not wait."""
        model, _ = self._jobs[job]
        return self._entered[model] + self._waiting[model].position(job)
