"""Work of a recorded request: seconds on an otherwise idle worker, from what a trace says of its size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from controller.simulator.urgency import Urgency

#: Columns with the execution time, and their units per second.
_DURATION_COLUMNS = {"exec_s": 1.0, "ran_s": 1.0, "exec_time_seconds": 1.0, "duration_s": 1.0, "value": 1000.0}
_PROMPT_COLUMNS = ("input_tokens", "ContextTokens", "input_length", "prompt_tokens")
_TOKEN_COLUMNS = ("output_tokens", "GeneratedTokens", "output_length", "completion_tokens")
_STEP_COLUMNS = ("steps", "num_inference_steps")
#: Work that no request exceeds: a year.
MAX_WORK_S = 366 * 86_400.0
#: Representations of a missing value.
_MISSING_VALUES = ("", "NULL", "None", "NaN", "nan", None)


class RequestCosts(NamedTuple):
    """Work of requests without an execution time in the trace, in seconds on an otherwise idle worker."""

    #: Of a step of one image.
    step_s: float = 0.15
    #: Of an output token.
    token_s: float = 0.04
    #: For requests without any size.
    request_s: float = 4.5
    #: Of a token of the prompt.
    prompt_token_s: float = 0.0
    #: Pixels of the image to which `step_s` applies; other sizes take time in proportion. None: all sizes are equal.
    pixels: float | None = None


def work_of(row: Mapping[str, Any], costs: RequestCosts) -> float | None:
    """Return the work of a request in seconds; None without a size. Raises `ValueError` for a value that is none."""
    work_s = _work_of(row, costs)
    if work_s is not None and not work_s <= MAX_WORK_S:
        raise ValueError(f"{work_s:.3g} s of work are too much; at most {MAX_WORK_S:g} s are allowed")
    return work_s


def _work_of(row: Mapping[str, Any], costs: RequestCosts) -> float | None:
    for column, units in _DURATION_COLUMNS.items():
        duration = _first(row, (column,))
        if duration is not None:
            return duration / units
    tokens, prompt = _first(row, _TOKEN_COLUMNS), _first(row, _PROMPT_COLUMNS)
    if tokens is not None:
        return tokens * costs.token_s + (prompt or 0.0) * costs.prompt_token_s
    steps = _first(row, _STEP_COLUMNS)
    if steps is not None:
        images = _first(row, ("num_images_per_prompt", "images"))
        return steps * costs.step_s * (1.0 if images is None else images) * _relative_pixels(row, costs.pixels)
    return None


def urgency_of(row: Mapping[str, Any]) -> Urgency:
    """Return the priority and the deadline of a request. Raises `ValueError` for values that are none."""
    priority = 0.0 if row.get("priority") in _MISSING_VALUES else number(row, "priority")
    if priority != int(priority):
        raise ValueError(f"priority ({priority:g}) is no whole number")
    deadline_s = _first(row, ("deadline_s", "timeout_s"))
    return Urgency(int(priority), math.inf if deadline_s is None else deadline_s)


def number(row: Mapping[str, Any], column: str) -> float:
    """Return a finite number of the row. Raises `ValueError` with the name of its column."""
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        raise ValueError(f"{column} ({row[column]!r:.40}) is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{column} ({value}) is not finite")
    return value


def _first(row: Mapping[str, Any], columns: Iterable[str]) -> float | None:
    """Return the value of the first of these columns that has one. Raises `ValueError` if it is negative."""
    column = next((name for name in columns if row.get(name) not in _MISSING_VALUES), None)
    if column is None:
        return None
    value = number(row, column)
    if value < 0:
        raise ValueError(f"{column} ({value:g}) is negative")
    return value


def _relative_pixels(row: Mapping[str, Any], pixels: float | None) -> float:
    """Return the size of an image from `width` and `height`, or from `shape` such as 512x512."""
    if pixels is None:
        return 1.0
    width, height = _first(row, ("width",)), _first(row, ("height",))
    if width is None and "x" in str(row.get("shape") or ""):
        sides = dict(zip(("width", "height"), str(row["shape"]).split("x", 1), strict=True))
        width, height = _first(sides, ("width",)), _first(sides, ("height",))
    return 1.0 if width is None or height is None else width * height / pixels
