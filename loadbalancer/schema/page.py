"""What the page is told. These documents belong to the page of the same version, and may change with it."""

from __future__ import annotations

import msgspec


class PageModel(msgspec.Struct, frozen=True):
    """A served model."""

    name: str
    #: `image`, `text` or `call`.
    task: str
    engine: str
    #: The promised wait in seconds.
    max_wait_s: float
    #: Of the requests that should wait no longer.
    percentile: float


class Session(msgspec.Struct, frozen=True):
    """Who looks at the page, and what they may do."""

    owner: str
    scopes: list[str]
    #: The server asks for API keys.
    keys: bool
    requests_per_minute: int | None
    max_concurrent: int | None
    weight: float
    #: Arrivals are recorded, for the simulator.
    records_arrivals: bool
    #: What a request for an image may name as `scheduler`.
    samplers: list[str]
    models: list[PageModel]


class ModelPast(msgspec.Struct, frozen=True):
    """A model's past, oldest first: the Unix times of the points, and one column per name."""

    step_s: int
    times: list[int]
    columns: dict[str, list[float | None]]


class TaskRow(msgspec.Struct, frozen=True):
    """A task that waits or runs."""

    id: str
    model: str
    owner: str
    state: str
    age_s: float
    step: int
    steps: int
    #: Tasks before it in the queue.
    position: int
    eta_s: float | None
    worker: str | None


class OwnerRow(msgspec.Struct, frozen=True):
    """What an API key has used since the start, in the last hour, and what waits and runs of it. Times in seconds."""

    owner: str
    queued: int
    running: int
    done: int
    #: Also those that ran out of time.
    failed: int
    cancelled: int
    tokens: int
    work_s: float
    hour_done: int
    hour_tokens: int
    hour_work_s: float


class UsagePage(msgspec.Struct, frozen=True):
    """The first `limit` of `total` owners, or the caller only."""

    owners: list[OwnerRow]
    total: int
    limit: int


class TaskPage(msgspec.Struct, frozen=True):
    """The first `limit` of `total` tasks."""

    tasks: list[TaskRow]
    total: int
    limit: int
