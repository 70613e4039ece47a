"""The section `scaling` of a model: the number of its workers. The docstring of a field is its documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, AliasChoices, Field, model_validator

from configs.fields import aliases
from configs.section_base import MachineCount, PositiveSeconds, Seconds, Section

#: Fields that only some policies read, by policy. Every policy reads the fields that are not listed.
POLICY_FIELDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "queue_depth": frozenset(
            {
                "scale_up_at",
                "scale_down_at",
                "scale_up_hold_s",
                "scale_down_hold_s",
                "scale_up_cooldown_s",
                "scale_down_cooldown_s",
            }
        ),
        "ongoing_requests": frozenset(
            {
                "target_ongoing_requests",
                "upscaling_factor",
                "downscaling_factor",
                "upscale_delay_s",
                "downscale_delay_s",
            }
        ),
        "slo_work": frozenset({"behavior", "startup_hold_s", "feedback"}),
        "schedule": frozenset(),
        "static": frozenset(),
    }
)
#: Fields by the names that Kubernetes, KEDA, Knative and Ray Serve have for them.
NAMES_ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "minReplicas": "min_workers",
        "maxReplicas": "max_workers",
        "minReplicaCount": "min_workers",
        "maxReplicaCount": "max_workers",
        "idleReplicaCount": "min_workers",
        "min-scale": "min_workers",
        "max-scale": "max_workers",
        "initial-scale": "initial_workers",
        "minScale": "min_workers",
        "maxScale": "max_workers",
        "initialScale": "initial_workers",
        "pollingInterval": "interval_s",
        "cooldownPeriod": "scale_to_zero.idle_s",
        "scale-to-zero-pod-retention-period": "scale_to_zero.idle_s",
        "downscale_to_zero_delay_s": "scale_to_zero.idle_s",
        "activation-scale": "scale_to_zero.activation",
        "averageValue": "target_ongoing_requests",
        "threshold": "target_ongoing_requests",
        "target": "target_ongoing_requests",
        "target_num_ongoing_requests_per_replica": "target_ongoing_requests",
        "max-scale-up-rate": "upscaling_factor",
        "upscale_smoothing_factor": "upscaling_factor",
        "downscale_smoothing_factor": "downscaling_factor",
        "stable-window": "look_back_period_s",
        "scale-down-delay": "behavior.scale_down.stabilization_window_s",
        "scaleUp": "scale_up",
        "scaleDown": "scale_down",
        "stabilizationWindowSeconds": "stabilization_window_s",
        "desiredReplicas": "workers",
        "container-concurrency": "max_batch_size",
        "containerConcurrency": "max_batch_size",
        "max_ongoing_requests": "max_batch_size",
        "max_concurrent_queries": "max_batch_size",
        "scale_up_threshold": "scale_up_at",
        "scale_down_threshold": "scale_down_at",
    }
)
#: Those of `NAMES_ELSEWHERE` that are a setting of the model, beside its section `scaling`.
FIELDS_OF_MODELS = frozenset({"max_batch_size"})
#: A backlog is cleared within this many allowed waits, even if `drain_s` is longer.
_DRAIN_WAITS = 3.0
#: Least time in seconds of which arrivals are reported by second.
_REPORTED_ARRIVALS_S = 120.0
_CUSTOM_POLICY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def _known_policy(value: str) -> str:
    if value not in POLICY_FIELDS and not _CUSTOM_POLICY.fullmatch(value):
        allowed = ", ".join(repr(name) for name in POLICY_FIELDS)
        raise ValueError(f"unknown policy; allowed: {allowed}, or a custom function as 'package.module:function'")
    return value


def _cron(value: str) -> str:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError:  # in the environment of an engine: the controller has checked the value
        return value
    try:
        CronSim(value, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(
            f"{error}; five fields are needed: minute hour day month weekday, as in '0 8 * * 1-5'"
        ) from None
    return value


def _timezone(value: str) -> str:
    if value == "UTC":  # without a database of time zones
        return value
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("unknown time zone; examples: UTC, Europe/Berlin, Asia/Tokyo") from None
    return value


class Slo(Section):
    """The service level objective: a maximum wait, and the percentage of requests within it."""

    max_wait_s: PositiveSeconds = 10.0
    """Maximum time between a request's arrival and the start of its work."""
    percentile: float = Field(default=99.0, gt=0, lt=100)
    """Percentage of requests that should not wait longer."""


class ScaleUp(Section):
    """Limits on adding workers."""

    stabilization_window_s: Seconds = 0.0
    """The number of workers does not exceed the minimum desired number within this time."""
    max_step: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of workers added within one `interval_s`. Default: no limit."""


class ScaleDown(Section):
    """Limits on removing workers."""

    stabilization_window_s: Seconds | Literal["auto"] = "auto"
    """The number of workers does not fall below the maximum desired number within this time. `auto`: one cold
    start, at least 60 s, and longer where replays of the recent arrivals show that this serves more in time."""
    max_step: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of workers removed within one `interval_s`. Default: no limit."""


class Behavior(Section):
    """Limits on the rate of change of the number of workers."""

    scale_up: ScaleUp = ScaleUp.model_construct()
    scale_down: ScaleDown = ScaleDown.model_construct()


class ScaleToZero(Section):
    """Scaling to and from zero workers, if `min_workers` is 0."""

    idle_s: Seconds = 300.0
    """Time without work after which the last worker of a model stops."""
    activation: MachineCount = Field(default=1, ge=1)
    """Minimum number of workers that the first request starts."""


class Feedback(Section):
    """Adaptation of the safety margin of `slo_work` to the observed waits."""

    gain: float = Field(default=0.01, ge=0, le=1)
    """Change of the margin per late request, in standard deviations; 0 keeps the margin constant. It grows in
    proportion where fewer than 0.75 % of requests may be late. More than 100 requests between two decisions count as
    100."""
    violation_target: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = "auto"
    """Target fraction of requests that wait too long. `auto`: 0.75 of the fraction that `slo.percentile` allows."""


class Scheduled(Section):
    """A number of workers from one time on, until the next entry applies."""

    cron: Annotated[str, AfterValidator(_cron)]
    """When the entry begins to apply: minute, hour, day of the month, month, day of the week."""
    workers: MachineCount = Field(ge=0, validation_alias=AliasChoices("workers", "min_workers", "min_replicas"))
    """Minimum number of workers; with `policy: schedule` the exact number."""
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    """Time zone of `cron`."""


class RecurringLoad(Section):
    """Learns at which times of the hour, the day and the week workers were needed, and starts them before."""

    learn: bool = False
    """Learn the recurring load, and never have fewer workers than it needs at that time."""
    half_life_days: float = Field(default=14.0, gt=0, le=365)
    """An arrival counts half as much after this time."""
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    """Time zone of days and weeks."""


class Scaling(Section):
    """The number of workers of a model. Load means (queued + running tasks) per live or starting worker."""

    min_workers: MachineCount = Field(default=1, ge=0, validation_alias=AliasChoices("min_workers", "min_replicas"))
    """Minimum number of workers. 0: the last one stops after `scale_to_zero.idle_s` without work."""
    max_workers: Annotated[MachineCount, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", validation_alias=AliasChoices("max_workers", "max_replicas")
    )
    """Maximum number of workers. `auto`: the number of devices."""
    initial_workers: Annotated[MachineCount, Field(ge=0)] | None = Field(
        default=None, validation_alias=AliasChoices("initial_workers", "initial_replicas")
    )
    """Number of workers at the start, and the constant number of policy `static`. Default: `min_workers`."""
    interval_s: PositiveSeconds = 30.0
    """Time between two decisions. Urgent events cause a decision at once."""
    policy: Annotated[str, AfterValidator(_known_policy)] = "slo_work"
    """Scaling policy: a built-in one, or a custom function as `package.module:function`."""
    slo: Slo = Slo.model_construct()
    scale_up_at: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """`queue_depth`: load from which a worker is added. `auto`: a full batch, as measured."""
    scale_down_at: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """`queue_depth`: load below which a worker is removed. `auto`: a quarter of `scale_up_at`."""
    scale_up_hold_s: Seconds = 0.0
    """`queue_depth`: time that the load must have been high before a worker is added."""
    scale_down_hold_s: Seconds = 60.0
    """`queue_depth`: time that the load must have been low before a worker is removed."""
    scale_up_cooldown_s: Seconds = 0.0
    """`queue_depth`: minimum time between two additions."""
    scale_down_cooldown_s: Seconds = 60.0
    """`queue_depth`: minimum time between the last change and a removal."""
    target_ongoing_requests: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """`ongoing_requests`: target number of queued + running tasks per worker. `auto`: 0.7 of a full batch."""
    upscaling_factor: float = Field(default=1.0, gt=0)
    """`ongoing_requests`: fraction of the missing workers that one decision adds."""
    downscaling_factor: float = Field(default=1.0, gt=0)
    """`ongoing_requests`: fraction of the surplus workers that one decision removes."""
    upscale_delay_s: Seconds = 30.0
    """`ongoing_requests`: time that more workers must have been desired before some are added."""
    downscale_delay_s: Seconds = 600.0
    """`ongoing_requests`: time that fewer workers must have been desired before some are removed."""
    look_back_period_s: PositiveSeconds = 90.0
    """Window in which arrivals are counted for their present rate, and loads are averaged."""
    rate_window_s: PositiveSeconds = 900.0
    """Window in which arrivals are counted for their long-term rate."""
    drain_s: PositiveSeconds = 30.0
    """Time within which a backlog should be completed, once the workers for it have started. At most three times
    `slo.max_wait_s` count, but at least a quarter of a start."""
    behavior: Behavior = Behavior.model_construct()
    startup_hold_s: Seconds = 300.0
    """`slo_work`: no worker is removed until arrivals have been counted for this time, and only after ten minutes
    without need until they have been counted for six times as long."""
    cold_start_s: PositiveSeconds | Literal["auto"] = "auto"
    """Duration of a cold start until the worker serves. `auto`: as measured, and 40 s before the first measurement."""
    standby_start_s: PositiveSeconds | Literal["auto"] = "auto"
    """Duration of a start from standby. `auto`: as measured, and 5 s before the first measurement."""
    scale_to_zero: ScaleToZero = ScaleToZero.model_construct()
    feedback: Feedback = Feedback.model_construct()
    schedule: tuple[Scheduled, ...] = ()
    """Minimum numbers of workers by time. The entry that began last applies."""
    recurring_load: RecurringLoad = RecurringLoad.model_construct()
    standby: MachineCount = Field(default=0, ge=0)
    """Number of standby processes. They have loaded libraries and weights but use no device, which shortens a start."""
    max_worker_age_s: PositiveSeconds | None = None
    """Maximum age of a worker. Older ones are replaced one at a time, the new one first. Default: no limit."""

    @property
    def effective_drain_s(self) -> float:
        """Return `drain_s`, at most three allowed waits."""
        return min(self.drain_s, _DRAIN_WAITS * self.slo.max_wait_s)

    @property
    def reported_arrivals_s(self) -> float:
        """Return the seconds of which the balancer reports the arrivals by second."""
        return max(_REPORTED_ARRIVALS_S, 2 * self.interval_s)

    @model_validator(mode="before")
    @classmethod
    def _no_duplicate_alias(cls, values: Any) -> Any:
        for field in cls.model_fields.values():
            given = [name for name in aliases(field) if isinstance(values, dict) and name in values]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} are the same setting; keep one of them")
        return values

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Scaling:
        minimum, maximum, initial = self.min_workers, self.max_workers, self.initial_workers
        if maximum != "auto" and minimum > maximum:
            raise ValueError(f"min_workers ({minimum}) must not exceed max_workers ({maximum})")
        if initial is not None and initial < minimum:
            raise ValueError(f"initial_workers ({initial}) must not be below min_workers ({minimum})")
        if initial is not None and maximum != "auto" and initial > maximum:
            raise ValueError(f"initial_workers ({initial}) must not exceed max_workers ({maximum})")
        if maximum != "auto" and minimum == 0 and self.scale_to_zero.activation > maximum:
            raise ValueError(
                f"scale_to_zero.activation ({self.scale_to_zero.activation}) must not exceed max_workers ({maximum})"
            )
        for entry in self.schedule:
            if maximum != "auto" and entry.workers > maximum:
                raise ValueError(
                    f"schedule requires {entry.workers} workers at {entry.cron!r}, "
                    f"which must not exceed max_workers ({maximum})"
                )
        return self

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Scaling:
        up, down = self.scale_up_at, self.scale_down_at
        if up != "auto" and down != "auto" and down >= up:
            raise ValueError(
                f"scale_down_at ({down:g}) must be below scale_up_at ({up:g}), "
                "or workers would start and stop endlessly"
            )
        if self.look_back_period_s > self.rate_window_s:
            raise ValueError(
                f"look_back_period_s ({self.look_back_period_s:g}) must not exceed "
                f"rate_window_s ({self.rate_window_s:g})"
            )
        target, allowed = self.feedback.violation_target, 1 - self.slo.percentile / 100
        if target != "auto" and target > allowed + 1e-9:
            raise ValueError(
                f"feedback.violation_target ({target:g}) must not exceed {allowed:.4g}, "
                f"which slo.percentile ({self.slo.percentile:g}) allows"
            )
        return self

    @model_validator(mode="after")
    def _policy_reads_fields(self) -> Scaling:
        if self.policy == "schedule" and not self.schedule:
            raise ValueError("policy schedule needs entries under schedule, such as {cron: '0 8 * * 1-5', workers: 4}")
        if self.policy not in POLICY_FIELDS:  # a custom policy may read any field
            return self
        unread = frozenset().union(*POLICY_FIELDS.values()) - POLICY_FIELDS[self.policy]
        for name in sorted(unread & self.model_fields_set):
            if getattr(self, name) != type(self).model_fields[name].default:
                readers = " or ".join(policy for policy, fields in POLICY_FIELDS.items() if name in fields)
                raise ValueError(f"policy {self.policy} does not use {name}; remove it, or set policy: {readers}")
        return self
