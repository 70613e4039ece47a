"""The types that the repository stores.

`JobSpec` and `Failure` are stored as JSON and read by newer programs: to them and to `TaskInputs`, fields may only be
added, with defaults. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import msgspec

from loadbalancer.scheduling.task import Checkpoint
from wire.errors import ErrorDetail
from wire.inputs import CallInputs, ImageInputs, TaskInputs, TextInputs


class JobState(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_STATES = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Failure(msgspec.Struct, frozen=True):
    """The error response of the endpoint."""

    status: int
    error: ErrorDetail


class WebhookTarget(msgspec.Struct, frozen=True):
    """The webhook of a job and its signing secret."""

    url: str
    secret: str | None = None


class TextOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a text request says of its response."""

    #: Number of texts for each prompt.
    choices: int = 1
    #: How texts are divided, see `OutputFormat`.
    tools: bool = False
    reasoning: bool = False
    parallel_calls: bool = True
    #: JSON of what a response repeats of its request, see `ResponseEcho`.
    echo: str = ""


class JobSpec(msgspec.Struct, frozen=True):
    """A job's complete inputs, without its source images or the values of its calls."""

    path: str
    model: str
    inputs: list[TaskInputs]
    priority: int
    deadline: float
    owner: str
    weight: float
    metadata: dict[str, str] | None = None
    hook: WebhookTarget | None = None
    response_format: str = "b64_json"
    #: As stored: the seeds of all images, which are else equal to the first. None: `inputs` has each of them.
    seeds: list[int] | None = None
    #: Of a job that generates texts.
    text: TextOptions | None = None
    #: Of the request that created it.
    request_id: str = ""
    #: Its span as the header `traceparent`; empty without a trace.
    traceparent: str = ""

    @property
    def images(self) -> list[ImageInputs]:
        """The inputs of a job that generates images; none of one with calls."""
        return [each for each in self.inputs if isinstance(each, ImageInputs)]

    @property
    def calls(self) -> list[CallInputs]:
        """The inputs of a job with calls; none of one that generates images."""
        return [each for each in self.inputs if isinstance(each, CallInputs)]


def without_repetition(spec: JobSpec) -> JobSpec:
    """The spec to store: images and texts that differ only in their seeds share the rest, which may be long."""
    seeds = [_seed(each) for each in spec.inputs]
    if len(seeds) < 2 or None in seeds:
        return spec
    first, *others = spec.inputs
    if any(_with_seed(each, seeds[0] or 0) != first for each in others):
        return spec
    return msgspec.structs.replace(spec, inputs=[first], seeds=seeds)


def with_all_images(spec: JobSpec) -> JobSpec:
    """The opposite. The images and texts share what is equal in memory as well."""
    if spec.seeds is None or not spec.inputs:
        return spec
    inputs = [_with_seed(spec.inputs[0], seed) for seed in spec.seeds]
    return msgspec.structs.replace(spec, inputs=inputs, seeds=None)


def _seed(inputs: TaskInputs) -> int | None:
    if isinstance(inputs, TextInputs):
        return inputs.sampling.seed
    return inputs.seed if isinstance(inputs, ImageInputs) else None


def _with_seed(inputs: TaskInputs, seed: int) -> TaskInputs:
    if isinstance(inputs, TextInputs):
        sampling = msgspec.structs.replace(inputs.sampling, seed=seed)
        return msgspec.structs.replace(inputs, sampling=sampling)
    return msgspec.structs.replace(inputs, seed=seed)


#: Placeholder for a stored spec that cannot be read.
UNREADABLE_SPEC = JobSpec("", "", [], 0, 0.0, "", 1.0)


class IdempotencyKey(NamedTuple):
    """An owner's idempotency key and the digest of its request."""

    owner: str
    key: str
    digest: bytes


class JobRecord(NamedTuple):
    """A job as stored."""

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
        return self.order is not UNREADABLE_SPEC


class StoredImage(NamedTuple):
    """One finished image of a job, or the packed result of a call."""

    item: int
    image: bytes
    waited_s: float
    ran_s: float
    flagged: bool
    #: Tokens at the end of the prompts that the model has not read.
    truncated_tokens: int = 0


class JobPage(NamedTuple):
    """A page of jobs, newest first; `more` if older ones follow."""

    records: list[JobRecord]
    more: bool


class StoredResult(NamedTuple):
    """What is behind the URL of an image: its media type, size in bytes, and the time of its storing."""

    media_type: str
    size: int
    made: float


#: Longest pause between two attempts of a delivery.
MAX_PAUSE_S = 3600.0


class PendingDelivery(NamedTuple):
    """A webhook that is due, with the attempts made so far."""

    job: str
    attempts: int
    owner: str
    host: str


class RetentionLimits(NamedTuple):
    """What a sweep leaves: nothing that is older than `before`, and at most so many bytes of each kind."""

    before: float
    job_bytes: int
    response_bytes: int
    results_before: float = 0.0
    result_bytes: int = 2**62


class StoredCheckpoint(NamedTuple):
    """The checkpoint of one image of a job."""

    job: str
    item: int
    state: Checkpoint


class StoredResponse(NamedTuple):
    """A response stored for its idempotency key."""

    status: int
    media_type: str
    body: bytes
    #: Other headers of the response.
    headers: Mapping[str, str] = {}


class IdempotencyKeyReused(Exception):
    """The idempotency key was used with another request."""
