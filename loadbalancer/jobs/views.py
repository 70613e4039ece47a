"""What clients get of jobs: the view of one, a page of them, and why there is no result. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec

from loadbalancer.schema.errors import ApiError, Conflict, TimedOut
from loadbalancer.schema.responses import Timings
from loadbalancer.storage.records import Failure, JobRecord, JobState
from wire.errors import ErrorBody, ErrorDetail


class JobProgress(NamedTuple):
    """How far an unfinished job is: what comes before it, seconds to its end, denoising steps done and in all."""

    position: int
    eta_s: float | None
    step: int
    steps: int


class JobView(msgspec.Struct, frozen=True):
    """A job as it stands. Times are Unix seconds."""

    id: str
    state: Annotated[JobState, msgspec.Meta(description="`done`, `failed` and `cancelled` are ends.")]
    path: Annotated[str, msgspec.Meta(description="The endpoint whose answer is the result.")]
    model: str
    n: Annotated[int, msgspec.Meta(description="Images asked for.")]
    created_at: float
    started_at: Annotated[float | None, msgspec.Meta(description="First denoising step.")]
    ended_at: float | None
    expires_at: Annotated[float | None, msgspec.Meta(description="Until when the result is kept, room permitting.")]
    position: Annotated[int | None, msgspec.Meta(description="What is before it; 0 once it runs, null at its end.")]
    eta_s: Annotated[float | None, msgspec.Meta(description="Seconds to its end; null while unknown.")]
    step: Annotated[int, msgspec.Meta(description="Denoising steps done, of all its images.")]
    steps: Annotated[int, msgspec.Meta(description="Denoising steps of all its images.")]
    timings: Annotated[Timings | None, msgspec.Meta(description="Of the whole job; null before its end.")]
    error: Annotated[ErrorDetail | None, msgspec.Meta(description="Why it failed, as the endpoint would say.")]
    metadata: Annotated[dict[str, str] | None, msgspec.Meta(description="The client's own, returned as it was given.")]
    webhook: Annotated[str | None, msgspec.Meta(description="Where its end is told.")]
    object: Literal["job"] = "job"


class JobList(msgspec.Struct, frozen=True):
    """A page of jobs, the newest first."""

    data: list[JobView]
    has_more: Annotated[bool, msgspec.Meta(description="Whether older ones follow: ask again with `after`.")]
    first_id: str | None
    last_id: str | None
    object: Literal["list"] = "list"


def job_view(record: JobRecord, place: JobProgress | None, keep_s: float) -> JobView:
    """The job as a client sees it; `place` is where it stands if it is unfinished."""
    order, ended = record.order, record.ended
    steps = sum(image.steps for image in order.inputs)
    if place is None:
        place = JobProgress(0, None, steps if record.state is JobState.DONE else 0, steps)
    started = record.started
    timings = None
    if ended is not None:
        began = ended if started is None else started
        timings = Timings(began - record.created, ended - began)
    return JobView(
        id=record.id,
        state=record.state,
        path=order.path,
        model=order.model,
        n=len(order.inputs),
        created_at=record.created,
        started_at=started,
        ended_at=ended,
        expires_at=None if ended is None else ended + keep_s,
        position=None if ended is not None else place.position,
        eta_s=place.eta_s,
        step=place.step,
        steps=place.steps,
        timings=timings,
        error=None if record.failure is None else record.failure.error,
        metadata=order.metadata,
        webhook=None if order.hook is None else order.hook.url,
    )


def job_list(views: Sequence[JobView], *, more: bool) -> JobList:
    """The page."""
    return JobList(list(views), more, views[0].id if views else None, views[-1].id if views else None)


class StoredError(ApiError):
    """What a failed job's endpoint would have answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message, param=failure.error.param, code=failure.error.code)
        self.failure = failure

    @property
    def body(self) -> ErrorBody:
        """What the client reads."""
        return ErrorBody(self.failure.error)


def missing_result_error(record: JobRecord) -> ApiError | None:
    """Why the ended job has no result; None where it has one."""
    if record.state is JobState.CANCELLED:
        return cancelled()
    return None if record.failure is None else StoredError(record.failure)


def cancelled() -> ApiError:
    """What is told of a job that was cancelled."""
    return Conflict("The job was cancelled.", code="job_cancelled")


def expired(record: JobRecord) -> ApiError:
    """What a job ends with that was not done in time."""
    allowed_s = record.order.deadline - record.created
    return TimedOut(f"The request timed out: the job was not done {allowed_s:.0f} s after it arrived.")
