"""The services that the HTTP API uses."""

from __future__ import annotations

from dataclasses import dataclass

from configs.data_dir import DataDirCheck
from configs.settings import Settings
from loadbalancer.access.api_keys import Authenticator
from loadbalancer.access.key_enforcement import EnforcedKeys
from loadbalancer.generation.decoding.decoder_pool import DecoderPool
from loadbalancer.generation.in_flight import RequestTracker
from loadbalancer.jobs.manager import JobManager
from loadbalancer.metrics.access_log import AccessLog
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.page.sampler import PageSampler
from loadbalancer.page.settings_simulator import SettingsSimulator
from loadbalancer.proxy.upstream import UpstreamClient
from loadbalancer.scaling.control_plane import ControlPlane
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.storage.database import Database
from loadbalancer.storage.result_store import ResultStore
from loadbalancer.tracing.tracer import Tracer


@dataclass(frozen=True)
class Services:
    """All services, built once by `__main__`."""

    settings: Settings
    scheduler: SchedulerService
    tracker: RequestTracker
    decoders: DecoderPool
    metrics: Metrics
    jobs: JobManager
    database: Database
    data_dir: DataDirCheck
    results: ResultStore
    authenticator: Authenticator
    control: ControlPlane
    upstream: UpstreamClient
    keys: EnforcedKeys
    page: PageSampler
    simulator: SettingsSimulator
    #: None: no traces are written.
    tracer: Tracer | None
    #: None: it is off.
    access_log: AccessLog | None
    #: Start time in Unix seconds.
    started: int
