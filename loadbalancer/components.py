"""Builds the parts of the balancer and connects them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from filelock import Timeout

from configs.data_dir import DataDirCheck
from configs.files import describe_os_error
from configs.open_files import connections_within, raise_open_file_limit
from configs.paths import jobs_file, worker_address
from configs.settings import Settings
from loadbalancer.access.api_keys import Authenticator
from loadbalancer.access.key_enforcement import EnforcedKeys
from loadbalancer.access.origin_policy import is_loopback
from loadbalancer.access.startup_checks import (
    StartupError,
    curve_listener,
)
from loadbalancer.api.app import create_app
from loadbalancer.generation.decoding.decoder_pool import DecoderPool
from loadbalancer.generation.in_flight import RequestTracker, ResponseMemory
from loadbalancer.http_server.server import HttpConfig, HttpServer
from loadbalancer.jobs.manager import JobManager
from loadbalancer.jobs.webhook_sender import WebhookSender
from loadbalancer.metrics.access_log import AccessLog
from loadbalancer.metrics.arrival_log import ArrivalLog
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.metrics.scaling import ScalingCollector
from loadbalancer.metrics.storage import StorageCollector
from loadbalancer.metrics.tasks import TaskCollector
from loadbalancer.page.sampler import PageSampler
from loadbalancer.page.settings_simulator import SettingsSimulator
from loadbalancer.proxy.upstream import MissingApiKey, UpstreamClient
from loadbalancer.scaling.control_plane import ControlPlane
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.services import Services
from loadbalancer.storage.database import Database
from loadbalancer.storage.result_store import ResultStore
from loadbalancer.tracing.exporter_process import ExporterProcess
from loadbalancer.tracing.setup import blocked_reason, is_requested, sampler_of
from loadbalancer.tracing.tracer import Tracer
from loadbalancer.transport.curve_listener import CurveListener

log = logging.getLogger("loadbalancer")

#: Time for clients to read complete responses at shutdown.
FLUSH_S = 1


class Observers(NamedTuple):
    """What records requests and tasks; each is None where it is off."""

    arrivals: ArrivalLog | None
    exporter: ExporterProcess | None
    tracer: Tracer | None
    access_log: AccessLog | None

    def start(self) -> None:
        """Start those that have not started when they were made."""
        if self.exporter is not None:
            self.exporter.start()
        if self.access_log is not None:
            self.access_log.start()

    async def stop(self) -> None:
        """Write what is still to be written."""
        if self.arrivals is not None:
            await asyncio.to_thread(self.arrivals.stop)
        if self.exporter is not None:
            await self.exporter.stop()
        if self.access_log is not None:
            await asyncio.to_thread(self.access_log.stop)


class Components(NamedTuple):
    """The parts of the balancer that are started and stopped."""

    upstream: UpstreamClient
    observers: Observers
    scheduler: SchedulerService
    listener: CurveListener | None
    decoders: DecoderPool
    tracker: RequestTracker
    database: Database
    webhook_sender: WebhookSender
    jobs: JobManager
    keys: EnforcedKeys
    page: PageSampler
    simulator: SettingsSimulator
    server: HttpServer


def build_components(settings: Settings, keys: EnforcedKeys, token: str) -> Components:
    """Connect the parts. `token` is the internal token. Raises `StartupError`."""
    with named_os_errors():
        upstream, observers, listener = _upstream(settings), _observers(settings), curve_listener(settings)
        tracer = observers.tracer
        scheduler = SchedulerService(settings, worker_address(settings.data_dir), listener, observers.arrivals, tracer)
        data_dir = DataDirCheck(settings.data_dir)
    metrics, control = Metrics(scheduler.snapshot, scheduler.step_curves), ControlPlane()
    memory = ResponseMemory(settings.server.max_response_bytes_in_memory_per_key, metrics.refusals)
    tracker = RequestTracker(scheduler, metrics, control, memory)
    database = Database(jobs_file(settings.data_dir), settings.jobs.max_file_bytes, data_dir)
    webhook_sender = WebhookSender(settings.jobs, database, tracer)
    jobs = JobManager(settings, scheduler, database, webhook_sender.wake, tracer)
    services = Services(
        settings=settings,
        scheduler=scheduler,
        tracker=tracker,
        decoders=DecoderPool(settings.server),
        metrics=metrics,
        jobs=jobs,
        database=database,
        data_dir=data_dir,
        results=ResultStore(database, settings.results.ttl_s),
        authenticator=Authenticator(token, is_loopback(settings.server.host), settings.api_paths),
        control=control,
        upstream=upstream,
        keys=keys,
        page=PageSampler(scheduler, control),
        simulator=SettingsSimulator(),
        tracer=tracer,
        access_log=observers.access_log,
        started=int(time.time()),
    )
    config = _config(services)
    found = Components(
        upstream,
        observers,
        scheduler,
        listener,
        services.decoders,
        tracker,
        database,
        webhook_sender,
        jobs,
        keys,
        services.page,
        services.simulator,
        HttpServer(config),
    )
    _register_metrics(metrics, found, config, control, settings)
    return found


def _register_metrics(
    metrics: Metrics, found: Components, config: HttpConfig, control: ControlPlane, settings: Settings
) -> None:
    """Let the metrics read the counts of all parts at each scrape."""
    scheduler, jobs, database = found.scheduler, found.jobs, found.database
    metrics.registry.register(TaskCollector(scheduler.statistics, scheduler.owners))
    metrics.registry.register(ScalingCollector(control, time.monotonic))
    metrics.registry.register(StorageCollector(lambda: database.used_bytes, settings.jobs.max_file_bytes))
    tracker = found.tracker
    metrics.in_flight.add(lambda: {"response_bytes": tracker.memory.held, "requests": len(tracker), "jobs": len(jobs)})
    metrics.in_flight.add(lambda: scheduler.in_flight_counts)
    counting: list[_Counting | None] = [scheduler, jobs, found.webhook_sender, found.decoders, config]
    failing: list[_Failing | None] = [jobs, found.webhook_sender, found.keys, found.server, found.page]
    failing += [found.simulator, found.listener, found.observers.exporter]
    counting += [found.observers.access_log, found.observers.exporter]
    for each in counting:
        if each is not None:
            metrics.events.add(_counters(each))
    for part in failing:
        if part is not None:
            metrics.task_failures.add(_task_failures(part))


class _Counting(Protocol):
    """A part with counts of events."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Events since the start, by name."""


class _Failing(Protocol):
    """A part with background tasks."""

    @property
    def task_failures(self) -> Mapping[str, int]:
        """Unexpected failures since the start, by name of the task."""


def _counters(part: _Counting) -> Callable[[], Mapping[str, int]]:
    return lambda: part.counters


def _task_failures(part: _Failing) -> Callable[[], Mapping[str, int]]:
    return lambda: part.task_failures


@contextlib.contextmanager
def named_os_errors() -> Iterator[None]:
    """Raise `StartupError` with path and reason for an `OSError`, such as a full disk."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise StartupError(f"cannot start: {describe_os_error(error)}") from None


def _upstream(settings: Settings) -> UpstreamClient:
    """Raises `StartupError`."""
    try:
        return UpstreamClient(settings, os.environ)
    except MissingApiKey as missing:
        raise StartupError(str(missing)) from None


def _observers(settings: Settings) -> Observers:
    exporter, as_json = _exporter(settings), settings.logging.format == "json"
    limit = settings.server.max_traces_per_s
    tracer = None if exporter is None else Tracer(sampler_of(os.environ), exporter, limit)
    return Observers(
        _arrivals(settings), exporter, tracer, AccessLog(as_json=as_json) if settings.logging.access else None
    )


def _arrivals(settings: Settings) -> ArrivalLog | None:
    server = settings.server
    if server.record_arrivals is None:
        return None
    arrivals = ArrivalLog(settings.data_dir / server.record_arrivals, server.record_bytes)
    arrivals.start()
    return arrivals


def _exporter(settings: Settings) -> ExporterProcess | None:
    """Return the exporter of traces, or None where none are requested, or where they cannot be sent."""
    if not is_requested(os.environ):
        return None
    if reason := blocked_reason(os.environ):
        log.warning("no traces are written: %s", reason)
        return None
    return ExporterProcess(os.environ, as_json=settings.logging.format == "json")


def _config(services: Services) -> HttpConfig:
    settings = services.settings
    return HttpConfig(
        create_app(services),
        settings.server,
        _max_connections(settings.server.max_connections),
        services.metrics.refusals,
        internal_token=services.authenticator.internal_token,
        loop="uvloop",
        lifespan="off",
        server_header=False,
        headers=[("server", "muster")],
        log_config=None,
        log_level="debug" if settings.log_level == "debug" else "error",
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=FLUSH_S + 1,  # after the scheduler has ended them
        ssl_certfile=settings.server.tls_cert,
        ssl_keyfile=settings.server.tls_key,
    )


def _max_connections(wanted: int) -> int:
    files = raise_open_file_limit()
    allowed = connections_within(files, wanted)
    if allowed < wanted:
        log.warning("server.max_connections is %d, because this process may open %d files only", allowed, files)
    return allowed
