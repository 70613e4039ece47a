"""Requests of `POST /internal/*`: commands about the number of workers."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from loadbalancer.schema.requests import StrictModel
from wire.scaling import MAX_HOLD_S


class ScaleRequest(StrictModel):
    """`POST /internal/scale`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "digits", "workers": 2, "hold_s": 600}]})

    model: str
    """Name of a served model."""
    workers: int = Field(ge=0)
    """Number of workers, within the model's `min_workers` and `max_workers`."""
    hold_s: float = Field(default=600.0, gt=0, le=MAX_HOLD_S, allow_inf_nan=False)
    """Seconds until the model's policy decides again."""


class PauseRequest(StrictModel):
    """`POST /internal/pause`: stop scaling decisions. Workers that die are still replaced. The body may be empty."""


class ResumeRequest(StrictModel):
    """`POST /internal/resume`: continue scaling decisions. The body may be empty."""

    model: str | None = None
    """End only the override of this model; default: the pause and every override."""


class WorkerRequest(StrictModel):
    """`POST /internal/drain` and `POST /internal/restart`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"worker": "digits-4f2a"}]})

    worker: str = Field(min_length=1, max_length=200)
    """Name of a worker that the controller runs (`GET /internal/controller`)."""


class ReloadRequest(StrictModel):
    """`POST /internal/reload`: read the configuration again. The body may be empty."""

    models: tuple[str, ...] = Field(default=(), max_length=1000)
    """Replace the workers of these models even without a changed setting, as for new weights under the same name."""
