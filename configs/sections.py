"""What can be set for the server as a whole: one pydantic model for each part of the configuration.

What can be set for a model, and the whole tree, is in `schema`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]


def _some(value: ByteSize) -> ByteSize:
    if value < 1:
        raise ValueError("must be more than nothing, such as 9.5GiB")
    return value


#: A number of bytes, or text such as 9.5GiB.
Bytes = Annotated[ByteSize, AfterValidator(_some)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Server(Section):
    """The HTTP front door."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    timeout_s: PositiveSeconds = 300.0
    """How long a request may take from arrival to answer where it sets no `timeout_s` itself."""
    max_timeout_s: PositiveSeconds = 3600.0
    """The longest `timeout_s` that a request may set."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    """Largest request body that is read."""
    max_upload_bytes: int = Field(default=32 << 20, ge=1024)
    """Largest request body with pictures in it: `/v1/images/edits`, and data URLs in `/v1/images/generations`."""
    max_prompt_chars: int = Field(default=4000, ge=1)
    """Longest prompt and negative prompt."""
    max_n: int = Field(default=10, ge=1, le=128)
    """Most images of one request."""
    send_timeout_s: PositiveSeconds = Field(default=60.0, le=3600.0)
    """A client that takes less than 64 KiB of a waiting answer in this time, and not the rest of it, is hung up on."""
    record_arrivals: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,122}\.csv$")] | None = None
    """Name of a CSV file in `data_dir` with a line for each image asked for, for the simulator. Default: none."""
    record_bytes: int = Field(default=64 << 20, ge=1 << 12)
    """Most bytes of that file and of the older one (`NAME.csv.1`) beside it."""
    shutdown_s: PositiveSeconds = Field(default=4.0, le=8.0)
    """How long running requests may go on after a signal to stop."""
    tls_cert: Path | None = None
    """PEM file of the certificate, and of those between it and its root: with it the server speaks HTTPS only."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key, without a password."""

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Server:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_cert" if self.tls_cert is None else "tls_key"
            raise ValueError(f"tls_cert and tls_key go together; {missing} is missing")
        return self


class Access(Section):
    """Who may use the server."""

    keys_file: Path | None = None
    """API keys, as `scripts/keys` writes them; default: `keys.yaml` in `data_dir`, and without that file no keys."""
    insecure: bool = False
    """Allow an address that other machines reach although there are no API keys."""
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")], ...] = ()
    """Web pages of these origins (`https://HOST`, or `*`) may call the server from a browser; default: its own only."""
    hosts: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$|^\[[0-9A-Fa-f:.]+\]$")], ...] = ()
    """Further names by which clients may call a server that listens on this machine only, as behind a proxy."""


class Queue(Section):
    """The bounded queue of the balancer."""

    max_tasks: int = Field(default=1024, ge=1)
    """Most waiting tasks (images) per model; past it 429 with Retry-After, but for API keys with few of them."""
    max_source_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """Most bytes of source pictures (3 per pixel) that unfinished tasks may hold; past it the answer is 429 too."""
    max_attempts: int = Field(default=3, ge=1)
    """How many workers may die under a task before it is failed."""
    max_work_s: PositiveSeconds | None = None
    """Most waiting work per model, in seconds that its workers need for it, as measured; past it the answer is 429."""
    deadline_slack: Annotated[float, Field(ge=1)] | None = 1.5
    """A request is refused when its estimated time exceeds its `timeout_s` by this factor, and not begun where the time
    that is left to it is too short; null: never."""
    priority_s: Seconds = 60.0
    """A step of `priority` goes before others of the same owner that came up to this much earlier, and no more."""
    preempt_margin: Annotated[int, Field(ge=1)] | None = 1
    """A waiting task makes a running one of its owner give way whose `priority` is lower by this much; null: never."""
    rebalance: bool = True
    """Move running tasks to a worker that has come or become idle, when that finishes them sooner, as measured."""


class Jobs(Section):
    """Durable jobs (`/v1/jobs`), and answers that are kept for their `Idempotency-Key`."""

    timeout_s: PositiveSeconds = 86_400.0
    """How long a job may take from its arrival where its body sets no `timeout_s`; time without a server counts."""
    keep_s: PositiveSeconds = 86_400.0
    """How long results and kept answers can be asked for again."""
    max_bytes: int = Field(default=4 << 30, ge=1 << 16)
    """Most bytes that jobs and kept answers may take: past it the oldest results go, then new jobs get 429."""
    max_file_bytes: int | None = Field(default=None, ge=1 << 16)
    """Bound of the file itself, past which new jobs get 503 as on a full disk; default: none."""
    max_unfinished: int = Field(default=10_000, ge=1)
    """Most jobs that are not done; past it new ones get 429 with Retry-After."""
    queue_share: float = Field(default=0.5, gt=0, le=1)
    """Part of `queue.max_tasks` that images of jobs may fill; other jobs wait on disk, and requests find room."""
    checkpoint_every_s: PositiveSeconds = 3.0
    """How often the newest checkpoints of running jobs are written."""
    webhook_private: bool = False
    """Whether webhooks may go to private, loopback and link-local addresses."""
    webhook_timeout_s: PositiveSeconds = 10.0
    """How long a webhook's receiver may take to answer."""
    webhook_attempts: int = Field(default=10, ge=1)
    """How often a webhook is tried before it is given up."""
    webhook_retry_s: PositiveSeconds = 5.0
    """Pause before the second attempt; each further one is twice as long, up to an hour."""


class SimulatedDevice(Section):
    """Simulated GPUs of one size."""

    memory: Bytes
    """Memory of each, such as 24GiB."""
    count: int = Field(default=1, ge=1)
    """How many there are."""


class Devices(Section):
    """Where workers may run."""

    use: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes every GPU, or CPU slots on a machine without one."""
    cpu_slots: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Workers that the CPU has room for, one thread each; `auto` is one per core."""
    share: bool = False
    """Let several workers of one model share a GPU where its memory allows. Workers of different models always may."""
    memory_margin: float = Field(default=0.1, ge=0, le=1)
    """Room to leave beside what a model was seen to need (`gpu_memory: auto`), as a fraction of that."""
    simulated: tuple[SimulatedDevice, ...] = ()
    """GPUs that models with `engine: sim` compete for. Default: each finds as many as it may have workers."""


class Workers(Section):
    """The life of a worker process."""

    heartbeat_s: PositiveSeconds = 1.0
    """How often a worker says that it lives."""
    lost_after_s: PositiveSeconds = 10.0
    """Silence after which a worker's tasks are given to others."""
    start_timeout_s: PositiveSeconds = 600.0
    """A worker that is not ready by then is killed and counted as a crash."""
    drain_timeout_s: PositiveSeconds = 60.0
    """A draining worker whose tasks cannot be moved may finish them for so long; 10 s later it is killed."""
    stuck_factor: float = Field(default=20.0, ge=2)
    """A worker that lives but makes no step for this many times its measured step time is stuck, and replaced ..."""
    stuck_min_s: PositiveSeconds = 120.0
    """... but not before this: the first step of a new picture size may be compiled."""
    orphan_after_s: PositiveSeconds = 60.0
    """A worker that hears nothing from a balancer for this long exits."""
    listen: str | None = Field(default=None, pattern=r"^tcp://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[1-9][0-9]{0,4}$")
    """`tcp://ADDRESS:PORT` for workers on other machines, each with a key of its own (`scripts/keys add-worker`)."""

    @model_validator(mode="after")
    def _beats_before_lost(self) -> Workers:
        if self.lost_after_s < 2 * self.heartbeat_s:
            raise ValueError(
                f"lost_after_s ({self.lost_after_s:g}) must be at least twice heartbeat_s ({self.heartbeat_s:g})"
            )
        return self
