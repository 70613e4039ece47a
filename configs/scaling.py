"""What can be set about the number of a model's workers. The docstring of a field is its documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, AliasChoices, Field, model_validator

from configs.sections import PositiveSeconds, Seconds, Section

#: Fields that some policies read and others do not, by policy. Every policy reads what is listed for none.
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
#: Part of the allowed violations that the margin aims at: it is slow, and what it let through is not undone.
_AIM = 0.75
_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def _known_policy(value: str) -> str:
    if value not in POLICY_FIELDS and not _OWN.fullmatch(value):
        allowed = ", ".join(repr(name) for name in POLICY_FIELDS)
        raise ValueError(f"no such policy; allowed: {allowed}, or a function of your own as 'package.module:function'")
    return value


def _cron(value: str) -> str:
    try:
        CronSim(value, datetime(2000, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise ValueError(
            f"{error}; five fields are needed: minute hour day month weekday, as in '0 8 * * 1-5'"
        ) from None
    return value


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("no such time zone; names are such as UTC, Europe/Berlin, Asia/Tokyo") from None
    return value


class Slo(Section):
    """What clients should find: how long a request may wait for its start, and how many of them hold it."""

    max_wait_s: PositiveSeconds = 10.0
    """Longest wait between a request's arrival and the start of its work."""
    percentile: float = Field(default=99.0, gt=0, lt=100)
    """Percentage of requests that should wait no longer."""


class ScaleUp(Section):
    """How fast workers may come."""

    stabilization_window_s: Seconds = 0.0
    """No more workers than the fewest that were wanted in this time."""
    max_step: Annotated[int, Field(ge=1)] | None = None
    """Most workers that may be added within one `interval_s`. Default: no bound."""


class ScaleDown(Section):
    """How fast workers may go."""

    stabilization_window_s: Seconds | Literal["auto"] = "auto"
    """No fewer workers than the most that were wanted in this time; `auto` is one cold start."""
    max_step: Annotated[int, Field(ge=1)] | None = None
    """Most workers that may be removed within one `interval_s`. Default: no bound."""


class Behavior(Section):
    """How fast the number of workers may change."""

    scale_up: ScaleUp = ScaleUp()
    scale_down: ScaleDown = ScaleDown()


class ScaleToZero(Section):
    """What happens around zero workers, where `min_workers` is 0."""

    idle_s: Seconds = 300.0
    """How long a model must have had nothing to do before its last worker goes."""
    activation: int = Field(default=1, ge=1)
    """Workers that the first request starts, if its backlog does not need more."""


class Feedback(Section):
    """How the margin of `slo_work` follows the waits that were seen."""

    gain: float = Field(default=0.01, ge=0, le=1)
    """How much one request moves the margin, in standard deviations; 0 keeps it as it is."""
    violation_target: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = "auto"
    """Fraction of requests that may wait for too long; `auto` is 0.75 of what `slo.percentile` allows."""


class Scheduled(Section):
    """A number of workers from a time of day on, until the next entry's."""

    cron: Annotated[str, AfterValidator(_cron)]
    """When it begins: minute, hour, day of the month, month, day of the week."""
    workers: int = Field(ge=0, validation_alias=AliasChoices("workers", "min_workers", "min_replicas"))
    """At least so many workers; with `policy: schedule` just so many."""
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    """Time zone of `cron`."""


class Scaling(Section):
    """How many workers a model gets. Load is (queued + running tasks) per live or starting worker."""

    min_workers: int = Field(default=1, ge=0, validation_alias=AliasChoices("min_workers", "min_replicas"))
    """Never fewer than this. 0: the last one goes after `scale_to_zero.idle_s` without work."""
    max_workers: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", validation_alias=AliasChoices("max_workers", "max_replicas")
    )
    """Never more than this; `auto` is as many as there are devices."""
    initial_workers: Annotated[int, Field(ge=0)] | None = Field(
        default=None, validation_alias=AliasChoices("initial_workers", "initial_replicas")
    )
    """Workers to begin with, and what `static` keeps. Default: `min_workers`."""
    interval_s: PositiveSeconds = 30.0
    """Time between two decisions. What cannot wait for it is answered at once."""
    policy: Annotated[str, AfterValidator(_known_policy)] = "slo_work"
    """How the number is decided: one of Muster's policies, or `package.module:function` for one of your own."""
    slo: Slo = Slo()
    scale_up_at: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """`queue_depth`: one worker more when the load reaches this; `auto` is a full batch, as measured."""
    scale_down_at: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """`queue_depth`: one worker fewer when the load falls under this; `auto` is a quarter of `scale_up_at`."""
    scale_up_hold_s: Seconds = 0.0
    """`queue_depth`: how long the load must have been high."""
    scale_down_hold_s: Seconds = 60.0
    """`queue_depth`: how long the load must have been low."""
    scale_up_cooldown_s: Seconds = 0.0
    """`queue_depth`: least time between two additions."""
    scale_down_cooldown_s: Seconds = 60.0
    """`queue_depth`: least time between the last change and a removal."""
    target_ongoing_requests: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """`ongoing_requests`: queued + running tasks that each worker should have; `auto` is 0.7 of a full batch."""
    upscaling_factor: float = Field(default=1.0, gt=0)
    """`ongoing_requests`: fraction of what is missing that one decision adds."""
    downscaling_factor: float = Field(default=1.0, gt=0)
    """`ongoing_requests`: fraction of what is too much that one decision removes."""
    upscale_delay_s: Seconds = 30.0
    """`ongoing_requests`: how long more workers must have been wanted."""
    downscale_delay_s: Seconds = 600.0
    """`ongoing_requests`: how long fewer workers must have been wanted."""
    look_back_period_s: PositiveSeconds = 90.0
    """Over how long arrivals are counted for their present rate, and loads averaged."""
    rate_window_s: PositiveSeconds = 900.0
    """Over how long arrivals are counted for their usual rate."""
    drain_s: PositiveSeconds = 30.0
    """In how long a backlog should be worked off, once the workers for it have started."""
    behavior: Behavior = Behavior()
    startup_hold_s: Seconds = 300.0
    """`slo_work`: no worker goes while arrivals have been counted for less than this."""
    cold_start_s: PositiveSeconds | Literal["auto"] = "auto"
    """What a start takes until the worker serves; `auto` is what was measured, and 40 before the first measurement."""
    standby_start_s: PositiveSeconds | Literal["auto"] = "auto"
    """The same of a start from standby; `auto` is what was measured, and 5 before the first measurement."""
    scale_to_zero: ScaleToZero = ScaleToZero()
    feedback: Feedback = Feedback()
    schedule: tuple[Scheduled, ...] = ()
    """Least numbers of workers by the time of day. The entry that began last counts."""
    standby: int = Field(default=0, ge=0)
    """Spare processes that hold libraries and weights in host memory but no device, so that a start is short."""
    max_worker_age_s: PositiveSeconds | None = None
    """Workers older than this are replaced, one at a time and the new one first. Default: never."""

    @property
    def violations(self) -> float:
        """The fraction of requests that may wait for too long, of which the margin is made."""
        target = self.feedback.violation_target
        return _AIM * (1 - self.slo.percentile / 100) if target == "auto" else target

    @model_validator(mode="before")
    @classmethod
    def _not_given_twice(cls, values: Any) -> Any:
        for field in cls.model_fields.values():
            alias = field.validation_alias
            names = [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else []
            given = [name for name in names if isinstance(values, dict) and name in values]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} are the same setting; keep one of them")
        return values

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Scaling:
        least, most, first = self.min_workers, self.max_workers, self.initial_workers
        if most != "auto" and least > most:
            raise ValueError(f"min_workers ({least}) must not exceed max_workers ({most})")
        if first is not None and first < least:
            raise ValueError(f"initial_workers ({first}) must not be below min_workers ({least})")
        if first is not None and most != "auto" and first > most:
            raise ValueError(f"initial_workers ({first}) must not exceed max_workers ({most})")
        if most != "auto" and least == 0 and self.scale_to_zero.activation > most:
            raise ValueError(
                f"scale_to_zero.activation ({self.scale_to_zero.activation}) must not exceed max_workers ({most})"
            )
        for entry in self.schedule:
            if most != "auto" and entry.workers > most:
                raise ValueError(
                    f"schedule asks for {entry.workers} workers at {entry.cron!r}, "
                    f"which must not exceed max_workers ({most})"
                )
        return self

    @model_validator(mode="after")
    def _thresholds_agree(self) -> Scaling:
        up, down = self.scale_up_at, self.scale_down_at
        if up != "auto" and down != "auto" and down >= up:
            raise ValueError(
                f"scale_down_at ({down:g}) must be below scale_up_at ({up:g}), "
                "or workers would start and stop without end"
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
    def _read_by_the_policy(self) -> Scaling:
        if self.policy == "schedule" and not self.schedule:
            raise ValueError("policy schedule needs entries under schedule, such as {cron: '0 8 * * 1-5', workers: 4}")
        if self.policy not in POLICY_FIELDS:  # the user's own reads what it likes
            return self
        strange = frozenset().union(*POLICY_FIELDS.values()) - POLICY_FIELDS[self.policy]
        for name in sorted(strange & self.model_fields_set):
            if getattr(self, name) != type(self).model_fields[name].default:
                readers = " or ".join(policy for policy, fields in POLICY_FIELDS.items() if name in fields)
                raise ValueError(f"{name} means nothing to policy {self.policy}; remove it, or set policy: {readers}")
        return self
