"""The live controller and the simulator on a part of a recorded day, as they were measured."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from controller.simulator.scenarios import Traffic
from scripts.bench.autoscaling.live_vs_simulated import busiest_hour, part_of, share_within_tick

_ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
_DAY = Path(os.environ.get("TRACES_DIR", _ROOT.parent / "shared" / "traces")) / "gentd26_day.csv"
_RESULT = _ROOT / "scripts" / "bench" / "results" / "live_vs_simulated_trace.json"


def test_busiest_hour_has_the_most_work() -> None:
    traffic = Traffic([0.0, 100.0, 5000.0, 6000.0, 8599.0, 8601.0], [9.0, 9.0, 5.0, 9.0, 9.0, 1.0])
    # An hour begins at a request; that from 5000 s on has 23 s of work, and includes neither end.
    assert busiest_hour(traffic) == Traffic([0.0, 1000.0, 3599.0], [5.0, 9.0, 9.0])


@pytest.mark.skipif(not _DAY.exists(), reason=f"{_DAY} is absent; set TRACES_DIR to its folder")
def test_result_is_of_the_recorded_day() -> None:
    result = json.loads(_RESULT.read_text())
    options = result["options"]
    begin = float(options["begin"]) if "begin" in options else None
    part = part_of(str(_DAY), float(options["scale_work"]), begin, float(options.get("hours", 1)))
    assert len(part.times) == result["requests"]


def test_live_run_equals_the_simulation() -> None:
    result = json.loads(_RESULT.read_text())
    speed, interval_s = float(result["options"]["speed"]), float(result["options"]["interval"])
    live, simulated = ([(at, count) for at, count in result[name]] for name in ("live", "simulated"))
    span_s = 3600 * float(result["options"].get("hours", 1)) / speed
    assert result["errors"] == 0
    assert share_within_tick(live, simulated, span_s, interval_s / speed) >= 0.95
    assert share_within_tick(simulated, live, span_s, interval_s / speed) >= 0.95
    assert result["in_time"]["live"] == pytest.approx(result["in_time"]["simulated"], abs=0.03)
