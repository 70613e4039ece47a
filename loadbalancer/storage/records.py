"""What is written down of a job and of an answer: the types that the ledger stores and gives.

`JobSpec` and `Failure` lie on disk as JSON, and a file outlives the program that wrote it: their fields, and those of
`ImageInputs`, may only be added, with defaults. Times are Unix seconds.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

from loadbalancer.scheduling.task import Checkpoint
from wire.errors import ErrorDetail
from wire.messages import ImageInputs


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_STATES = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Failure(msgspec.Struct, frozen=True):
    """Why there is no result: what the endpoint itself would have answered."""

    status: int
    error: ErrorDetail


class WebhookTarget(msgspec.Struct, frozen=True):
    """Where the end of a job is to be told, and what the message is signed with."""

    url: str
    secret: str | None = None


class JobSpec(msgspec.Struct, frozen=True):
    """What is to be drawn, with nothing left open; the source pictures stand beside it."""

    path: str
    model: str
    inputs: list[ImageInputs]
    priority: int
    #: When its answer is worthless.
    deadline: float
    owner: str
    weight: float
    metadata: dict[str, str] | None = None
    hook: WebhookTarget | None = None


#: Stands for an order that lies on disk and cannot be read any more: nothing is to be drawn for it.
UNREADABLE_SPEC = JobSpec("", "", [], 0, 0.0, "", 1.0)


class IdempotencyKey(NamedTuple):
    """An idempotency key of an owner, and a digest of the request that it came with."""

    owner: str
    key: str
    digest: bytes


class JobRecord(NamedTuple):
    """A job as it stands on disk. `failure` is why it failed."""

    seq: int
    id: str
    order: JobSpec
    state: JobState
    created: float
    started: float | None
    ended: float | None
    failure: Failure | None

    @property
    def readable(self) -> bool:
        """Whether the order could be read."""
        return self.order is not UNREADABLE_SPEC


class StoredImage(NamedTuple):
    """One finished image of a job."""

    item: int
    image: bytes
    waited_s: float
    ran_s: float
    flagged: bool


class StoredCheckpoint(NamedTuple):
    """How far one image of a job has come."""

    job: str
    item: int
    state: Checkpoint


class StoredResponse(NamedTuple):
    """An answer that is kept for its idempotency key."""

    status: int
    media_type: str
    body: bytes


class IdempotencyKeyReused(Exception):
    """The idempotency key has come with another request before."""
