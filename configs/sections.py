"""The sections of the configuration that concern the whole server. `settings` has the models and the complete tree."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from configs.section_base import (
    HOST_AND_PORT,
    MAX_MESSAGE_BYTES,
    WEB_ADDRESS,
    Bytes,
    ByteUnits,
    LocalPath,
    MachineCount,
    PositiveSeconds,
    RemotePath,
    Seconds,
    Section,
    TextPattern,
)

#: One body of the default maximum, and smaller ones beside it.
_BODY_BYTES_PER_KEY = 40 << 20


def _host(value: str) -> str:
    if not re.fullmatch(r"[^\s/@\x00-\x1f\x7f]+", value):
        raise ValueError("must be an address, or a host name")
    if not value.isascii():
        raise ValueError("must be ASCII, such as xn--e1afmkfd.example for an international name")
    return value


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError("must be an IP address or a network such as 10.0.0.0/8") from None
    return value


_CSV_NAME = TextPattern(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,122}\.csv",
    "the name of a file in data_dir that ends in .csv, such as arrivals.csv",
)
_PUBLIC_URL = TextPattern(WEB_ADDRESS, "an http or https URL without query, such as https://images.example.org")
_ORIGIN = TextPattern(
    r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", "`*`, or an origin without a path, such as https://app.example.org"
)
_HOST_NAME = TextPattern(
    r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", "a host name without scheme and port, such as gpu.example.org"
)
_TCP_ADDRESS = TextPattern(f"tcp://{HOST_AND_PORT}", "tcp://ADDRESS:PORT, such as tcp://10.0.0.1:5555")
_CLUSTER = TextPattern(f"auto|{HOST_AND_PORT}", "`auto`, or HOST:PORT such as 10.0.0.1:6379")


class Server(Section):
    """The HTTP server."""

    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    """Address to listen on, or a host name: then all of its addresses. `::` includes IPv4."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    timeout_s: PositiveSeconds = 300.0
    """Time limit of a request from arrival to answer, if the request sets no `timeout_s`."""
    max_timeout_s: PositiveSeconds = 3600.0
    """Maximum `timeout_s` of a request."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=MAX_MESSAGE_BYTES), ByteUnits()] = 1 << 20
    """Maximum size of a request body."""
    max_text_body_bytes: Annotated[int, Field(ge=1024, le=MAX_MESSAGE_BYTES), ByteUnits()] = 4 << 20
    """Maximum size of a request body of the text API, such as `/v1/chat/completions`."""
    max_upload_bytes: Annotated[int, Field(ge=1024, le=MAX_MESSAGE_BYTES), ByteUnits()] = 32 << 20
    """Maximum size of a request body with images: `/v1/images/edits`, and data URLs in `/v1/images/generations`. Also
    of a call: `:predict`, `/v2/models/{model}/infer` and `api_path`."""
    decoders: int = Field(default=3, ge=1, le=64)
    """Processes that decode source images. They start when needed and end when idle. One key uses all but one."""
    decode_timeout_s: Annotated[PositiveSeconds, Field(le=600.0)] = 10.0
    """CPU time to decode a source image and its mask; beyond it 400. A decoder that gets too little CPU time is 503."""
    max_waiting_decodes: int = Field(default=256, ge=1)
    """Maximum number of requests of one key whose source images wait to be decoded; beyond it 429 with Retry-After.
    Keys below their fair share are still accepted."""
    max_metadata_bytes: Annotated[int, Field(ge=1024), ByteUnits()] = 4 << 20
    """Maximum size of EXIF, ICC profile, XMP and texts in a source image."""
    max_body_bytes_in_memory: Annotated[int, Field(ge=1024), ByteUnits()] = 512 << 20
    """Maximum bytes of all bodies above 64 KiB that are being read and checked; beyond it 429 with Retry-After."""
    max_body_bytes_in_memory_per_key: Annotated[int, Field(ge=1024), ByteUnits()] | None = None
    """The same for one API key. Default: 40 MiB, or the largest body if that is larger."""
    max_response_bytes_in_memory_per_key: Annotated[int, Field(ge=1 << 16), ByteUnits()] = 256 << 20
    """Finished images of one API key that its clients have not read; beyond it new requests get 429. Without API keys
    it is the limit of all requests."""
    max_prompt_chars: int = Field(default=4000, ge=1, le=250_000)
    """Maximum length of a prompt and of a negative prompt."""
    max_n: int = Field(default=10, ge=1, le=128)
    """Maximum number of images per request."""
    max_instances: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Maximum number of `instances` per request to `:predict`. Default: 256, or `queue.max_tasks` if that is
    smaller."""
    max_traces_per_s: int = Field(default=200, ge=1, le=1_000_000)
    """Maximum number of traces that begin within a second, if a collector is named. Further requests have none."""
    send_timeout_s: Annotated[PositiveSeconds, Field(le=3600.0)] = 60.0
    """The connection is closed if the client reads neither 64 KiB nor the rest of an answer in this time."""
    max_request_line_bytes: Annotated[int, Field(ge=256), ByteUnits()] = 8 << 10
    """Maximum length of the request line; beyond it 414."""
    max_header_bytes: Annotated[int, Field(ge=1024), ByteUnits()] = 64 << 10
    """Maximum size of all headers of a request together; beyond it 431."""
    max_headers: int = Field(default=100, ge=8)
    """Maximum number of headers of a request; beyond it 431."""
    header_timeout_s: Annotated[PositiveSeconds, Field(le=3600.0)] = 15.0
    """Time from the first byte of a request to the end of its headers; beyond it 408."""
    body_timeout_s: Annotated[PositiveSeconds, Field(le=3600.0)] = 15.0
    """Interval in which `min_body_rate` must be reached while a body is read; otherwise 408."""
    min_body_rate: int = Field(default=1 << 10, ge=0)
    """Minimum bytes per second of a request body. 0: no minimum."""
    keep_alive_s: Annotated[PositiveSeconds, Field(le=3600.0)] = 75.0
    """Time that a connection may be idle between two requests."""
    max_connections: int = Field(default=4096, ge=8)
    """Maximum number of connections. Beyond it idle ones are closed, then requests other than health checks get 503."""
    max_connections_per_address: int = Field(default=1024, ge=1)
    """Maximum number of connections of one address (IPv6: of one /64 network). Loopback has no such limit."""
    trusted_proxies: tuple[Annotated[str, AfterValidator(_network)], ...] = ()
    """Addresses or networks of reverse proxies, to which `max_connections_per_address` does not apply."""
    record_arrivals: Annotated[str, _CSV_NAME] | None = None
    """Name of a CSV file in `data_dir` that records a line per requested image, for the simulator. Default: none."""
    record_bytes: Annotated[int, Field(ge=1 << 12), ByteUnits()] = 64 << 20
    """Maximum size of that file together with the previous one (`NAME.csv.1`)."""
    public_url: Annotated[str, _PUBLIC_URL] | None = None
    """URL at which clients reach the server, for the URLs of images. Default: scheme and Host of the request."""
    max_reads_per_key: int = Field(default=256, ge=1)
    """Maximum number of GET and DELETE requests of one API key at once, event streams of jobs included; beyond it
    429."""
    shutdown_s: Annotated[PositiveSeconds, Field(le=8.0)] = 4.0
    """Time that running requests have to finish after a signal to stop."""
    tls_cert: LocalPath | None = None
    """PEM file of the certificate and its intermediate certificates. If set, the server uses HTTPS only."""
    tls_key: LocalPath | None = None
    """PEM file of the certificate's private key, without a password."""

    @property
    def largest_body_bytes(self) -> int:
        """The largest body of any path: a job with images, or with a text."""
        return max(self.max_upload_bytes, self.max_text_body_bytes) + self.max_body_bytes

    @property
    def body_bytes_per_key(self) -> int:
        """`max_body_bytes_in_memory_per_key` with its default."""
        return self.max_body_bytes_in_memory_per_key or max(_BODY_BYTES_PER_KEY, self.largest_body_bytes)

    @model_validator(mode="after")
    def _memory_fits_a_body(self) -> Server:
        largest = self.largest_body_bytes
        for name in ("max_body_bytes_in_memory", "max_body_bytes_in_memory_per_key"):
            size = getattr(self, name)
            if size is not None and size < largest:
                raise ValueError(
                    f"{name} ({size}) must be at least max_upload_bytes and max_body_bytes together ({largest}), "
                    "or the largest body could never be accepted"
                )
        return self

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Server:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_cert" if self.tls_cert is None else "tls_key"
            raise ValueError(f"tls_cert and tls_key go together; {missing} is missing")
        return self


class Access(Section):
    """Access control."""

    keys_file: LocalPath | None = None
    """File of API keys, written by `scripts/keys`. Default: `keys.yaml` in `data_dir`. Without it no key is needed,
    unless keys have been in force: then the server does not start."""
    insecure: bool = False
    """Allow `server.host` to be reachable from other machines without API keys."""
    cors_origins: tuple[Annotated[str, _ORIGIN], ...] = ()
    """Origins of web pages (`https://HOST`, or `*`) that may call the server from a browser. Default: its own only.
    Desktop applications and extensions have origins such as `app://NAME` and `chrome-extension://ID`."""
    hosts: tuple[Annotated[str, _HOST_NAME], ...] = ()
    """Names by which clients reach the server, such as that of a reverse proxy. Others get 403, except for loopback
    names, and off loopback the machine's own names and IP addresses. Without keys, a server on loopback refuses to
    start with this setting unless `insecure` is true."""


class Queue(Section):
    """The balancer's queues."""

    max_tasks: int = Field(default=1024, ge=1)
    """Maximum number of queued tasks (images) per model; beyond it 429 with Retry-After. Keys below their fair share
    are still accepted."""
    max_source_bytes: Annotated[int, Field(ge=1 << 20), ByteUnits()] = 1 << 30
    """Maximum bytes of source images (3 per pixel) and inputs of calls, of all unfinished tasks; beyond it 429. Keys
    below their fair share are still accepted."""
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Number of workers that may die or hang while they run a task before the task fails. With 2 or more, it runs
    isolated in its last attempt, so that it fails only if it is the cause. Fewer make a request that hangs every worker
    end sooner."""
    max_work_s: PositiveSeconds | None = None
    """Maximum queued work per model, in measured seconds of its workers; beyond it 429. Default: no limit."""
    deadline_slack: Annotated[float, Field(ge=1)] | None = 1.5
    """A request is rejected if its estimated time exceeds its `timeout_s` by this factor, and is not started if its
    remaining time is too short. null: never."""
    priority_s: Seconds = 60.0
    """Head start of one step of `priority`: it goes before tasks of the same owner that arrived this much earlier."""
    preempt_margin: Annotated[int, Field(ge=1)] | None = 1
    """A queued task preempts a running one of the same owner whose `priority` is lower by this much. null: never."""
    rebalance: bool = True
    """Move running tasks to a new or idle worker if they are estimated to finish earlier there."""


class Jobs(Section):
    """Durable jobs (`/v1/jobs`), and answers stored by `Idempotency-Key`."""

    timeout_s: PositiveSeconds = 86_400.0
    """Time limit of a job from its arrival, if it sets no `timeout_s`. Time while the server is down counts."""
    keep_s: PositiveSeconds = 86_400.0
    """Time that results and stored answers remain available."""
    max_bytes: Annotated[int, Field(ge=1 << 16), ByteUnits()] = 4 << 30
    """Maximum bytes of jobs with their results. Beyond it the oldest results of the keys that hold the most are
    deleted. The source images of unfinished jobs have the same maximum; beyond it 429, except below the fair share."""
    max_response_bytes: Annotated[int, Field(ge=1 << 16), ByteUnits()] = 256 << 20
    """Maximum bytes of answers stored by `Idempotency-Key`. Beyond it the oldest of the keys that hold the most are
    deleted."""
    max_file_bytes: Annotated[int, Field(ge=1 << 18), ByteUnits()] | None = None
    """Maximum size of the database file; beyond it new jobs get 503, as on a full disk. Default: none."""
    max_unfinished: int = Field(default=10_000, ge=1)
    """Maximum number of unfinished jobs; beyond it 429 with Retry-After. Keys below their fair share are still
    accepted."""
    max_unfinished_per_key: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of unfinished jobs of one API key; beyond it 429. Default: no limit of its own."""
    queue_share: float = Field(default=0.5, gt=0, le=1)
    """Fraction of `queue.max_tasks` that jobs may use; further jobs wait on disk, so that requests find room."""
    checkpoint_every_s: PositiveSeconds = 3.0
    """Interval between two checkpoints of a running job."""
    webhook_private: bool = False
    """Allow webhooks to private, loopback and link-local addresses."""
    webhook_timeout_s: PositiveSeconds = 10.0
    """Time limit of an attempt, from the look-up of the host to the answer."""
    webhook_concurrency: int = Field(default=16, ge=1)
    """Number of webhooks that are delivered at once; keys below their fair share may add as many. One host gets at most
    4 of a key at once."""
    webhook_attempts: int = Field(default=10, ge=1)
    """Maximum number of attempts per webhook."""
    webhook_retry_s: PositiveSeconds = 5.0
    """Delay before the second attempt. It doubles with each further attempt, up to an hour."""


class Results(Section):
    """Images that are answered as URLs (`response_format: url`)."""

    ttl_s: PositiveSeconds = 3600.0
    """Time that a URL works."""
    max_bytes: Annotated[int, Field(ge=1 << 16), ByteUnits()] = 1 << 30
    """Maximum bytes of images behind URLs. Beyond it the oldest of the keys that hold the most are deleted."""


class Logging(Section):
    """The log files of the balancer and the workers, in `data_dir`/logs."""

    max_bytes: Annotated[int, Field(ge=1 << 12), ByteUnits()] = 16 << 20
    """Maximum size of a log file. Beyond it the file becomes `NAME.log.1`."""
    backups: int = Field(default=2, ge=0, le=100)
    """Number of earlier parts of each log file that are kept."""
    format: Literal["text", "json"] = "text"
    """Form of the log lines of all programs. `json`: an object per line."""
    access: bool = False
    """Whether the balancer writes a line for each request that it has answered."""


class SimulatedDevice(Section):
    """Simulated GPUs of one size."""

    memory: Bytes
    """Memory of each device, such as 24GiB."""
    count: MachineCount = Field(default=1, ge=1)
    """Number of devices."""


class Devices(Section):
    """The devices that workers use."""

    use: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto`: all GPUs, or CPU slots on a machine without a GPU."""
    cpu_slots: Annotated[MachineCount, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of workers on the CPU, one thread each. `auto`: one per core."""
    share: bool = False
    """Allow several workers of one model on a GPU if its memory suffices. Workers of different models always may."""
    memory_margin: float = Field(default=0.1, ge=0, le=1)
    """Memory reserved in addition to the measured need of a model (`gpu_memory: auto`), as a fraction of it."""
    simulated: tuple[SimulatedDevice, ...] = ()
    """Simulated GPUs for models with `engine: sim`. Default: enough for all their workers."""


class Agent(Section):
    """The agent of a machine (`python -m worker --agent`). Only the agent's own configuration counts."""

    model_folders: tuple[LocalPath, ...] = ()
    """Folders of this machine with models, adapters and Python files of engines. A path of the server's configuration
    is looked up in them by its last part; nothing outside of them can be named by the server."""
    engines: tuple[str, ...] = ()
    """Engines `package.module:Class` of packages on this machine that the server may start."""
    interpreters: tuple[LocalPath, ...] = ()
    """Python interpreters of this machine that the server may name (`models.NAME.python`)."""
    max_fetched_bytes: Annotated[int, Field(ge=0), ByteUnits()] = 200 << 30
    """Maximum bytes of weights that are fetched from the server, in `data_dir`/weights, such as 200GiB. 0: none."""


class Workers(Section):
    """The lifecycle of worker processes."""

    heartbeat_s: Annotated[PositiveSeconds, Field(le=3600)] = 1.0
    """Interval between two heartbeats of a worker."""
    lost_after_s: PositiveSeconds = 10.0
    """Time without a heartbeat after which a worker's tasks are assigned to other workers."""
    start_timeout_s: PositiveSeconds = 600.0
    """A worker that is not ready after this time is killed, and counts as crashed."""
    max_starting: Annotated[MachineCount, Field(ge=1)] | Literal["auto"] = "auto"
    """Maximum number of processes that start at once on each machine. `auto`: devices of the server, at least 8."""
    drain_timeout_s: PositiveSeconds = 60.0
    """Time that a draining worker has to finish tasks that cannot be moved; it is killed 10 s later."""
    drain_grace_s: Seconds = 0.3
    """A worker goes on for so long after SIGTERM, and longer if the balancer says then that it is stopping too."""
    stuck_factor: float = Field(default=20.0, ge=2)
    """A live worker is stuck, and replaced, if it completes no step for this multiple of its measured step time ..."""
    stuck_min_s: PositiveSeconds = 120.0
    """... and at least for this time: the first step of a new image size may include compilation."""
    orphan_after_s: PositiveSeconds = 60.0
    """A worker exits if it receives nothing from a balancer for this time."""
    max_result_bytes: Annotated[int, Field(ge=1 << 20, le=MAX_MESSAGE_BYTES), ByteUnits()] = 64 << 20
    """Maximum size of an image or a checkpoint of a worker. A larger frame closes its connection."""
    max_per_key: int = Field(default=64, ge=1)
    """Maximum number of workers on other machines that connect with the same key."""
    listen: Annotated[str, _TCP_ADDRESS] | None = None
    """Address `tcp://ADDRESS:PORT` for workers on other machines. Each needs a key (`scripts/keys add-worker`)."""
    share_after_s: Seconds = 30.0
    """With `listen`: time that machines have to join before workers up to `min_workers` share devices of this one."""

    @model_validator(mode="after")
    def _lost_after_two_heartbeats(self) -> Workers:
        if self.lost_after_s < 2 * self.heartbeat_s:
            raise ValueError(
                f"lost_after_s ({self.lost_after_s:g}) must be at least twice heartbeat_s ({self.heartbeat_s:g})"
            )
        return self


class RayCluster(Section):
    """Workers on a Ray cluster, with `launcher: ray`; see docs/ray.md."""

    address: Annotated[str, _CLUSTER] = "auto"
    """Address HOST:PORT of the cluster; `auto`: the one that this machine is a node of."""
    python: LocalPath | None = None
    """Interpreter on this machine that has Ray. Default: the interpreter of the server."""
    worker_python: RemotePath | None = None
    """Interpreter on the nodes that has Muster. Default: the one that Ray uses there."""
    data_dir: RemotePath = "~/.cache/muster-ray"
    """Folder on each node for logs, caches and weights from the hub."""
    environment: dict[str, str] = Field(default={})
    """Environment variables of the workers, by name."""
