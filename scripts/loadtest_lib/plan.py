"""What a load test does, written by its command and read by Locust's processes. Standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scripts.loadtest_lib.shapes import LoadShape

#: The variable with the path of the plan.
VARIABLE = "MUSTER_LOADTEST_PLAN"


class TargetModel(NamedTuple):
    """A model of the server under test."""

    name: str
    task: str
    #: Images: the default size, and the bounds of `num_inference_steps` in the test's requests.
    size: str = ""
    min_steps: int = 1
    max_steps: int = 1
    edits: bool = False


class RecordedRequest(NamedTuple):
    """A request of a recorded day. `size` is empty where the recording has none."""

    at_s: float
    model: str
    steps: int
    size: str
    n: int


@dataclass(frozen=True)
class LoadPlan:
    """The plan. With a rate or a recording the loop is open: requests are sent when they are due."""

    url: str
    folder: Path
    shape: LoadShape
    models: tuple[TargetModel, ...]
    #: Weights by kind of user: image, edit, job, chat.
    weights: dict[str, float]
    users: int = 0
    #: Maximum requests per second of the open loop; 0 with a recording.
    rate: float = 0.0
    #: Mean pause of a user between an answer and the next request, in seconds.
    pause_s: float = 0.0
    #: Requests that one process has open in the open loop; those beyond count as errors.
    max_in_flight: int = 1000
    timeout_s: float = 300.0
    processes: int = 1
    seed: int = 1
    key_file: Path | None = None
    recorded: tuple[RecordedRequest, ...] = field(default=())

    @property
    def is_open(self) -> bool:
        return bool(self.rate or self.recorded)

    def keys(self) -> list[str]:
        """Return the API keys of the key file, one a line. Raises `OSError`."""
        if self.key_file is None:
            return []
        return [line.strip() for line in self.key_file.read_text().splitlines() if line.strip()]

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, file: Path) -> LoadPlan:
        values: dict[str, Any] = json.loads(file.read_text())
        values["folder"] = Path(values["folder"])
        values["key_file"] = Path(values["key_file"]) if values["key_file"] else None
        values["shape"] = LoadShape(*values["shape"])
        values["models"] = tuple(TargetModel(*each) for each in values["models"])
        values["recorded"] = tuple(RecordedRequest(*each) for each in values["recorded"])
        return cls(**values)
