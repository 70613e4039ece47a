"""`python -m loadbalancer`: the HTTP server and the scheduler in one process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import uvloop
from filelock import FileLock, Timeout
from setproctitle import setproctitle

from configs.addresses import bind_all, listen_addresses
from configs.cli import EXIT_USAGE, HelpFormatter, add_config_options, add_server_options, settings_from
from configs.data_dir import DataDirCheck
from configs.files import describe_os_error
from configs.log_files import rotate_own_log
from configs.logs import configure_logging
from configs.open_files import connections_within, raise_open_file_limit
from configs.paths import internal_token, jobs_file, run_dir, worker_address
from configs.sections import Server
from configs.settings import Settings
from configs.streams import detach_standard_streams
from loadbalancer.access.api_keys import Authenticator
from loadbalancer.access.key_enforcement import EnforcedKeys
from loadbalancer.access.origin_policy import is_loopback
from loadbalancer.access.startup_checks import (
    StartupError,
    check_exposure,
    check_resolved,
    check_tls,
    curve_listener,
    open_keys,
)
from loadbalancer.api.app import create_app
from loadbalancer.context.request_context import log_fields
from loadbalancer.generation.decoding.decoder_pool import DecoderPool
from loadbalancer.generation.in_flight import RequestTracker
from loadbalancer.generation.response_memory import ResponseMemory
from loadbalancer.http_server.server import HttpConfig, HttpServer, set_socket_limits
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
from loadbalancer.transport.curve_listener import CannotListen

log = logging.getLogger("loadbalancer")

_BACKLOG = 2048
#: New objects, less those that were deleted, after which the youngest are searched for garbage.
_GC_THRESHOLD = 5000
#: Time for clients to read complete responses at shutdown.
_FLUSH_S = 1

_DESCRIPTION = """\
The load balancer: answers HTTP, owns the queue and hands tasks to workers. `python -m controller` starts it by itself
together with its workers. By hand, it and a worker meet through the data directory:

    python -m loadbalancer --port 8000 --data-dir ./data
    python -m worker --model digits --data-dir ./data

On an address that other machines reach it asks for API keys (`scripts/keys`); TLS is server.tls_cert and tls_key.
Workers on other machines join at workers.listen, with keys of their own.

SIGTERM or Ctrl-C: new requests get 503, running ones may finish for server.shutdown_s. A second one ends them at once.
"""


class AddressUnavailable(Exception):
    """The server cannot listen on the address; the text says why."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadbalancer", description=_DESCRIPTION, formatter_class=HelpFormatter
    )
    add_server_options(parser)
    add_config_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal. Returns the exit status: 0 stopped, 2 startup failed."""
    detach_standard_streams()
    # FastAPI compares each parameter with the models of pydantic's first version, if that can be imported: 1.5 MB.
    sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type]
    settings = settings_from(_parser().parse_args(argv))
    configure_logging(
        settings.log_level, as_json=settings.logging.format == "json", program="loadbalancer", context=log_fields
    )
    rotate_own_log(settings.data_dir, settings.logging)
    setproctitle("muster loadbalancer")
    host, port = settings.server.host, settings.server.port
    try:
        with _named_os_errors():
            keys = open_keys(settings)
            check_exposure(settings, keys.ring)
            check_tls(settings.server)
            lock = FileLock(run_dir(settings.data_dir) / "loadbalancer.lock", timeout=0)
            lock.acquire()
            token = internal_token(settings.data_dir)
        with lock, contextlib.ExitStack() as listening:
            listeners = [listening.enter_context(listener) for listener in _listen(settings.server)]
            uvloop.run(serve(settings, listeners, keys, token))
    except Timeout:
        print(f"the data directory {settings.data_dir} is already served by another balancer", file=sys.stderr)
        return EXIT_USAGE
    except AddressUnavailable as error:
        print(f"cannot listen on {host}, port {port}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except StartupError as refusal:
        print(refusal, file=sys.stderr)
        return EXIT_USAGE
    return 0


@contextlib.contextmanager
def _named_os_errors() -> Iterator[None]:
    """Raise `StartupError` with path and reason for an `OSError`, such as a full disk."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise StartupError(f"cannot start: {describe_os_error(error)}") from None


def _listen(server: Server) -> list[socket.socket]:
    """Raises `AddressUnavailable` if an address of the host is in use or not of this machine."""
    try:
        addresses = listen_addresses(server.host, server.port)
        check_resolved(server.host, addresses)
        listeners = bind_all(addresses, _BACKLOG)
    except OSError as error:
        raise AddressUnavailable(error.strerror or str(error)) from error
    for listener in listeners:
        set_socket_limits(listener, server.send_timeout_s)
    return listeners


class _Parts(NamedTuple):
    """The parts of the balancer that are started and stopped."""

    upstream: UpstreamClient
    arrivals: ArrivalLog | None
    scheduler: SchedulerService
    decoders: DecoderPool
    tracker: RequestTracker
    database: Database
    webhook_sender: WebhookSender
    jobs: JobManager
    keys: EnforcedKeys
    page: PageSampler
    simulator: SettingsSimulator
    server: HttpServer
    exporter: ExporterProcess | None
    access_log: AccessLog | None


def _build(settings: Settings, keys: EnforcedKeys, token: str) -> _Parts:
    """Connect the parts. `token` is the internal token. Raises `StartupError`."""
    with _named_os_errors():
        upstream, arrivals, listener = _upstream(settings), _arrivals(settings), curve_listener(settings)
        exporter = _exporter(settings)
        access_log = AccessLog(as_json=settings.logging.format == "json") if settings.logging.access else None
        tracer = (
            None if exporter is None else Tracer(sampler_of(os.environ), exporter, settings.server.max_traces_per_s)
        )
        scheduler = SchedulerService(settings, worker_address(settings.data_dir), listener, arrivals, tracer)
        data_dir = DataDirCheck(settings.data_dir)
    metrics = Metrics(scheduler.snapshot, scheduler.step_curves)
    decoders = DecoderPool(settings.server)
    control = ControlPlane()
    memory = ResponseMemory(settings.server.max_response_bytes_in_memory_per_key, metrics.refusals)
    tracker = RequestTracker(scheduler, metrics, control, memory)
    authenticator = Authenticator(token, is_loopback(settings.server.host), settings.api_paths)
    database = Database(jobs_file(settings.data_dir), settings.jobs.max_file_bytes, data_dir)
    webhook_sender = WebhookSender(settings.jobs, database, tracer)
    jobs = JobManager(settings, scheduler, database, webhook_sender.wake, tracer)
    page, simulator = PageSampler(scheduler, control), SettingsSimulator()
    services = Services(
        settings,
        scheduler,
        tracker,
        decoders,
        metrics,
        jobs,
        database,
        data_dir,
        ResultStore(database, settings.results.ttl_s),
        authenticator,
        control,
        upstream,
        keys,
        page,
        simulator,
        tracer,
        access_log,
        int(time.time()),
    )
    config = _config(services)
    server = HttpServer(config)
    metrics.registry.register(TaskCollector(scheduler.statistics, scheduler.owners))
    metrics.registry.register(ScalingCollector(control, time.monotonic))
    metrics.registry.register(StorageCollector(lambda: database.used_bytes, settings.jobs.max_file_bytes))
    metrics.in_flight.add(lambda: {"response_bytes": memory.held, "requests": len(tracker), "jobs": len(jobs)})
    metrics.in_flight.add(lambda: scheduler.in_flight_counts)
    metrics.events.add(lambda: scheduler.counters)
    metrics.events.add(lambda: jobs.counters)
    metrics.events.add(lambda: webhook_sender.counters)
    metrics.events.add(lambda: decoders.counters)
    metrics.events.add(lambda: config.counters)
    metrics.task_failures.add(lambda: jobs.task_failures + webhook_sender.task_failures + keys.task_failures)
    metrics.task_failures.add(lambda: server.task_failures + page.task_failures + simulator.task_failures)
    if listener is not None:
        metrics.task_failures.add(lambda: listener.task_failures)
    if access_log is not None:
        metrics.events.add(lambda: access_log.counters)
    if exporter is not None:
        metrics.events.add(lambda: exporter.counters)
        metrics.task_failures.add(lambda: exporter.task_failures)
    return _Parts(
        upstream,
        arrivals,
        scheduler,
        decoders,
        tracker,
        database,
        webhook_sender,
        jobs,
        keys,
        page,
        simulator,
        server,
        exporter,
        access_log,
    )


async def serve(settings: Settings, listeners: Sequence[socket.socket], keys: EnforcedKeys, token: str) -> None:
    """Serve on the sockets until a signal, then finish the running requests. `token` is the internal token.

    Raises `StartupError`.
    """
    parts = _build(settings, keys, token)
    first_signal, second_signal = _signals()
    await parts.jobs.start()  # before the workers connect: they may still run tasks of jobs
    try:
        await parts.scheduler.start()
    except CannotListen as error:
        raise StartupError(str(error)) from None
    if parts.exporter is not None:
        parts.exporter.start()
    if parts.access_log is not None:
        parts.access_log.start()
    parts.webhook_sender.start()
    keys.start()
    parts.page.start()
    # What was built stays: looking at it again with every full collection would cost a tenth of a request, and pauses.
    gc.collect()
    gc.freeze()
    # Requests leave no garbage in cycles. A burst of them is no reason to look for it.
    gc.set_threshold(_GC_THRESHOLD, 10, 10)
    serving = asyncio.create_task(parts.server.serve(sockets=list(listeners)))
    log.info("serving %s at %s", ", ".join(settings.models), _url(settings.server))
    await asyncio.wait({serving, first_signal}, return_when=asyncio.FIRST_COMPLETED)
    await _finish_requests(parts, settings.server.shutdown_s, second_signal)
    parts.server.should_exit = True
    await serving
    await keys.stop()
    await parts.database.close()
    if parts.arrivals is not None:
        await asyncio.to_thread(parts.arrivals.stop)
    if parts.exporter is not None:
        await parts.exporter.stop()
    if parts.access_log is not None:
        await asyncio.to_thread(parts.access_log.stop)
    log.info("stopped")


async def _finish_requests(parts: _Parts, shutdown_s: float, at_once: asyncio.Future[None]) -> None:
    """Let running requests finish for `shutdown_s`, or until `at_once`; the others get 503."""
    parts.tracker.close()
    await asyncio.gather(parts.page.stop(), parts.simulator.stop())
    parts.scheduler.announce_stop(shutdown_s + _FLUSH_S)
    log.info("stopping: %r, %r", parts.tracker, parts.jobs)
    # The next start resumes the jobs.
    await asyncio.gather(parts.decoders.close(), parts.jobs.stop(), parts.webhook_sender.stop())
    finished = asyncio.create_task(parts.tracker.wait_idle())
    await asyncio.wait({finished, at_once}, timeout=shutdown_s, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(parts.scheduler.stop(), parts.upstream.close())
    await asyncio.wait({finished}, timeout=_FLUSH_S)
    finished.cancel()


def _upstream(settings: Settings) -> UpstreamClient:
    """Raises `StartupError`."""
    try:
        return UpstreamClient(settings, os.environ)
    except MissingApiKey as missing:
        raise StartupError(str(missing)) from None


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
        log_config=None,
        log_level="debug" if settings.log_level == "debug" else "error",
        access_log=settings.log_level == "debug",
        timeout_graceful_shutdown=_FLUSH_S + 1,  # after the scheduler has ended them
        ssl_certfile=settings.server.tls_cert,
        ssl_keyfile=settings.server.tls_key,
    )


def _max_connections(wanted: int) -> int:
    files = raise_open_file_limit()
    allowed = connections_within(files, wanted)
    if allowed < wanted:
        log.warning("server.max_connections is %d, because this process may open %d files only", allowed, files)
    return allowed


def _signals() -> tuple[asyncio.Future[None], asyncio.Future[None]]:
    """Return futures of the first signal to stop and of a second SIGINT or SIGTERM.

    SIGUSR1 comes from the controller and is never counted: a service manager may send SIGTERM beside it.
    """
    loop = asyncio.get_running_loop()
    first: asyncio.Future[None] = loop.create_future()
    second: asyncio.Future[None] = loop.create_future()
    counted = 0

    def stop(signum: signal.Signals) -> None:
        nonlocal counted
        counted += signum != signal.SIGUSR1
        for future, is_reached in ((first, True), (second, counted > 1)):
            if is_reached and not future.done():
                future.set_result(None)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        loop.add_signal_handler(signum, stop, signum)
    return first, second


def _url(server: Server) -> str:
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"{'https' if server.tls_cert else 'http'}://{host}:{server.port}"


if __name__ == "__main__":
    sys.exit(main())
