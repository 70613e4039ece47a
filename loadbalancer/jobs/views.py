"""Responses about jobs: one job, a page of jobs, and the error of a job without a result. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec

from loadbalancer.schema.errors import ApiError, Conflict, TimedOut
from loadbalancer.schema.responses import Timings
from loadbalancer.storage.records import Failure, JobRecord, JobState
from wire.errors import ErrorBody, ErrorDetail


class JobProgress(NamedTuple):
    """Progress of an unfinished job: queue position, seconds to its end, denoising steps done and total."""

    position: int
    eta_s: float | None
    step: int
    steps: int


class JobView(msgspec.Struct, frozen=True):
    """State of a job. Times are Unix seconds."""

    id: str
    state: Annotated[JobState, msgspec.Meta(description="`done`, `failed` and `cancelled` are final.")]
    path: Annotated[str, msgspec.Meta(description="The endpoint whose response is the result.")]
    model: str
    n: Annotated[int, msgspec.Meta(description="Number of images.")]
    created_at: float
    started_at: Annotated[float | None, msgspec.Meta(description="First denoising step.")]
    ended_at: float | None
    expires_at: Annotated[
        float | None, msgspec.Meta(description="Expiry of the result; the size limit may delete it earlier.")
    ]
    position: Annotated[
        int | None, msgspec.Meta(description="Images and jobs before it; 0 once it runs, null at its end.")
    ]
    eta_s: Annotated[float | None, msgspec.Meta(description="Seconds to its end; null while unknown.")]
    step: Annotated[int, msgspec.Meta(description="Denoising steps done, of all its images.")]
    steps: Annotated[int, msgspec.Meta(description="Denoising steps of all its images.")]
    timings: Annotated[Timings | None, msgspec.Meta(description="Of the whole job; null before its end.")]
    error: Annotated[ErrorDetail | None, msgspec.Meta(description="The error response of the endpoint.")]
    metadata: Annotated[dict[str, str] | None, msgspec.Meta(description="Metadata of the client, returned unchanged.")]
    webhook: Annotated[str | None, msgspec.Meta(description="URL that is notified of its end.")]
    object: Literal["job"] = "job"


class JobList(msgspec.Struct, frozen=True):
    """A page of jobs, the newest first."""

    data: list[JobView]
    has_more: Annotated[bool, msgspec.Meta(description="True if older jobs follow: request them with `after`.")]
    first_id: str | None
    last_id: str | None
    object: Literal["list"] = "list"


def job_view(record: JobRecord, progress: JobProgress | None, keep_s: float) -> JobView:
    """Return the view of a job; `progress` is the progress of an unfinished one."""
    order, ended = record.order, record.ended
    steps = sum(image.steps for image in order.inputs)
    if progress is None:
        progress = JobProgress(0, None, steps if record.state is JobState.DONE else 0, steps)
    started = record.started
    timings = None
    if ended is not None:
        ran_from = ended if started is None else started
        timings = Timings(ran_from - record.created, ended - ran_from)
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
        position=None if ended is not None else progress.position,
        eta_s=progress.eta_s,
        step=progress.step,
        steps=progress.steps,
        timings=timings,
        error=None if record.failure is None else record.failure.error,
        metadata=order.metadata,
        webhook=None if order.hook is None else order.hook.url,
    )


def job_list(views: Sequence[JobView], *, more: bool) -> JobList:
    return JobList(list(views), more, views[0].id if views else None, views[-1].id if views else None)


class StoredError(ApiError):
    """The stored error of a failed job."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message, param=failure.error.param, code=failure.error.code)
        self.failure = failure

    @property
    def body(self) -> ErrorBody:
        return ErrorBody(self.failure.error)


def missing_result_error(record: JobRecord) -> ApiError | None:
    """Return the error of an ended job; None if it has a result."""
    if record.state is JobState.CANCELLED:
        return cancelled()
    return None if record.failure is None else StoredError(record.failure)


def cancelled() -> ApiError:
    return Conflict("The job was cancelled.", code="job_cancelled")


def expired(record: JobRecord) -> ApiError:
    allowed_s = record.order.deadline - record.created
    return TimedOut(f"The request timed out: the job was not done {allowed_s:.0f} s after it arrived.")
