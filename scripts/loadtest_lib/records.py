"""What Locust's processes write each second, and the command reads: counts and histograms. Standard library only."""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from scripts.loadtest_lib.histogram import DurationHistogram

#: `refused`: 429. `error`: any other failure, and what was not sent because too much was in flight.
Outcome = Literal["ok", "refused", "error"]
#: Names of durations beside those of the requests.
OWN_SHARE, LATENESS = "balancer's own share", "sent later than planned"
EDIT_SHARE = "balancer's own share of edits, with decoding"
#: Kinds of errors that one second keeps.
_MAX_ERRORS = 20


@dataclass
class LoadSecond:
    """One second of the test, over all processes."""

    users: int = 0
    in_flight: int = 0
    #: By name of the requests and outcome.
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: By name of the requests, for those that succeeded, and by name of other durations.
    durations: defaultdict[str, DurationHistogram] = field(default_factory=lambda: defaultdict(DurationHistogram))
    errors: Counter[str] = field(default_factory=Counter)

    def merge(self, other: LoadSecond) -> None:
        self.users += other.users
        self.in_flight += other.in_flight
        self.outcomes.update(other.outcomes)
        self.errors.update(other.errors)
        for name, histogram in other.durations.items():
            self.durations[name].merge(histogram)

    def count(self, outcome: Outcome) -> int:
        return sum(count for (_, ended), count in self.outcomes.items() if ended == outcome)

    def to_json(self) -> dict[str, Any]:
        return {
            "users": self.users,
            "in_flight": self.in_flight,
            "outcomes": [[*key, count] for key, count in self.outcomes.items()],
            "durations": {name: list(each.buckets.items()) for name, each in self.durations.items()},
            "errors": dict(self.errors),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> LoadSecond:
        second = cls(values["users"], values["in_flight"])
        second.outcomes.update({(name, outcome): count for name, outcome, count in values["outcomes"]})
        second.errors.update(values["errors"])
        for name, buckets in values["durations"].items():
            second.durations[name] = DurationHistogram(dict(buckets))
        return second


class RecordWriter:
    """Writes the seconds of one process: a line of JSON for each."""

    def __init__(self, file: Path) -> None:
        self._file: IO[str] = file.open("w")
        self._second = LoadSecond()
        self.in_flight = 0
        self.users = 0

    def add(self, name: str, outcome: Outcome, seconds: float, error: str = "") -> None:
        """Count a request that has ended."""
        self._second.outcomes[name, outcome] += 1
        if outcome == "ok":
            self.add_duration(name, seconds)
        if error and (error in self._second.errors or len(self._second.errors) < _MAX_ERRORS):
            self._second.errors[error] += 1

    def add_duration(self, name: str, seconds: float) -> None:
        self._second.durations[name].add(max(seconds, 0.0))

    def flush(self, unix_second: int) -> None:
        """Write what was counted since the last call, as the record of this second."""
        second, self._second = self._second, LoadSecond()
        second.users, second.in_flight = self.users, self.in_flight
        self._file.write(json.dumps({"second": unix_second} | second.to_json()) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class RecordReader:
    """Reads the records of all processes while they are written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        #: By Unix second.
        self.seconds: defaultdict[int, LoadSecond] = defaultdict(LoadSecond)

    def poll(self) -> None:
        """Read the lines that are new and complete. A file that began again replaces all that was read."""
        files = sorted(self._folder.glob("records-*.jsonl"))
        if any(file.stat().st_size < self._offsets.get(file, 0) for file in files):
            self._offsets.clear()
            self.seconds.clear()
        for file in files:
            with contextlib.suppress(FileNotFoundError), file.open("rb") as lines:
                lines.seek(self._offsets.get(file, 0))
                complete, newline, _ = lines.read().rpartition(b"\n")
                self._offsets[file] = self._offsets.get(file, 0) + len(complete) + len(newline)
            for line in complete.splitlines():
                values = json.loads(line)
                self.seconds[values["second"]].merge(LoadSecond.from_json(values))
