"""What people may order about the number of workers, and what they are told when they have."""

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
    """How many workers it is to have, within its `min_workers` and `max_workers`."""
    hold_s: float = Field(default=600.0, gt=0, le=MAX_HOLD_S, allow_inf_nan=False)
    """For how many seconds; then its policy decides again."""


class PauseRequest(StrictModel):
    """`POST /internal/pause`: decide nothing more. What dies is still replaced. The body may be empty."""


class ResumeRequest(StrictModel):
    """`POST /internal/resume`: decide again. The body may be empty."""

    model: str | None = None
    """End only what this model is held at; default: the pause, and whatever is held."""


class ReloadRequest(StrictModel):
    """`POST /internal/reload`: read the configuration again. The body may be empty."""

    models: tuple[str, ...] = Field(default=(), max_length=1000)
    """Replace the workers of these models even where no setting has changed, as for new weights under an old name."""
