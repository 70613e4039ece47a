"""The request `POST /ui/simulate`: settings to compare on a model's recorded traffic."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from loadbalancer.schema.requests import StrictModel
from wire.simulation import MAX_RUNS

#: The longest part of the record that is simulated.
MAX_HOURS = 7 * 24.0
_MAX_WORKERS = 1000


class SimulatedSettings(StrictModel):
    """Settings that differ from the present ones. What is absent stays."""

    min_workers: int | None = Field(default=None, ge=0, le=_MAX_WORKERS)
    max_workers: int | None = Field(default=None, ge=1, le=_MAX_WORKERS)
    max_wait_s: float | None = Field(default=None, gt=0, le=86400, allow_inf_nan=False)
    percentile: float | None = Field(default=None, ge=1, lt=100, allow_inf_nan=False)
    policy: Literal["slo_work", "queue_depth", "ongoing_requests", "static"] | None = None

    def scaling_fields(self) -> dict[str, Any]:
        """Return the fields of the section `scaling`."""
        slo = {"max_wait_s": self.max_wait_s, "percentile": self.percentile}
        fields = {"min_workers": self.min_workers, "max_workers": self.max_workers, "policy": self.policy}
        fields["slo"] = {name: value for name, value in slo.items() if value is not None} or None  # type: ignore[assignment]
        return {name: value for name, value in fields.items() if value is not None}


class SimulateRequest(StrictModel):
    """`POST /ui/simulate`."""

    model: str
    """Name of a served model."""
    hours: float = Field(default=24.0, gt=0, le=MAX_HOURS, allow_inf_nan=False)
    """The part of the record, until now."""
    source: Literal["recorded", "invented"] = "recorded"
    """The server's arrival log, or a day that is made up."""
    alternatives: tuple[SimulatedSettings, ...] = Field(default=(), max_length=MAX_RUNS - 1)

    @field_validator("alternatives")
    @classmethod
    def _differ(cls, value: tuple[SimulatedSettings, ...]) -> tuple[SimulatedSettings, ...]:
        if any(not one.scaling_fields() for one in value):
            raise ValueError("every alternative must change a setting")
        return value
