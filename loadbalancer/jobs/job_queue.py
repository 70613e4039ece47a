"""The order of jobs that wait on disk for room in the scheduler's queue. Pure.

Owners are served round robin, so that one owner's jobs do not block another's. An owner's jobs go by priority, then by
age.
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
        """Add a job; `seq` increases with every job."""
        place = (-priority, seq)
        self._owners.setdefault(owner, SortedDict())[place] = job
        self._places[job] = owner, place

    def first(self) -> str | None:
        return next((waiting.peekitem(0)[1] for waiting in self._owners.values()), None)

    def take(self, job: str) -> None:
        """Remove the job and end its owner's turn. Raises `KeyError` if the job is not queued."""
        owner, place = self._places.pop(job)
        waiting = self._owners[owner]
        del waiting[place]
        if waiting:
            self._owners.move_to_end(owner)
        else:
            del self._owners[owner]

    def position(self, job: str) -> int:
        """Return the number of jobs before it. Raises `KeyError` if the job is not queued."""
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
    """Admits jobs to the scheduler; their images fill at most `room` places of a model's queue."""

    def __init__(self, models: Iterable[str], room: int) -> None:
        self._room = room
        self._waiting = {model: JobQueue() for model in models}
        #: Images of the admitted jobs, by model.
        self._entered: Counter[str] = Counter()
        #: Model and images of each job.
        self._jobs: dict[str, tuple[str, int]] = {}

    def __repr__(self) -> str:
        return f"<JobAdmission entered {dict(self._entered)}, waiting {self._waiting}>"

    def push(self, job: str, model: str, images: int, owner: str, priority: int, seq: int) -> None:
        """Add a job; see `JobQueue.push`. Raises `KeyError` for an unknown model."""
        self._waiting[model].push(job, owner, priority, seq)
        self._jobs[job] = model, images

    def next(self, model: str) -> list[str]:
        """Admit and return the next jobs. A job larger than the room is admitted when no other is."""
        entering: list[str] = []
        while (job := self._waiting[model].first()) is not None:
            images = self._jobs[job][1]
            if self._entered[model] and self._entered[model] + images > self._room:
                break
            self.enter(job)
            entering.append(job)
        return entering

    def enter(self, job: str) -> None:
        """Admit a waiting job even without room. Raises `KeyError` if it does not wait."""
        model, images = self._jobs[job]
        self._waiting[model].take(job)
        self._entered[model] += images

    def leave(self, job: str) -> None:
        """Remove an ended job, waiting or admitted. An unknown job is ignored."""
        model, images = self._jobs.pop(job, ("", 0))
        if model and job in self._waiting[model]:
            self._waiting[model].take(job)
        elif model:
            self._entered[model] -= images

    def position(self, job: str) -> int:
        """Return the admitted images and waiting jobs before it. Raises `KeyError` if it does not wait."""
        model, _ = self._jobs[job]
        return self._entered[model] + self._waiting[model].position(job)
