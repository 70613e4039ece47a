"""Changes of the configuration: applied at once, by new workers, or only by a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.cli import to_yaml
from configs.load import load
from configs.settings import Settings
from controller.config_diff import diff_settings, generation

MODELS: dict[str, Any] = {"a": {"engine": "sim", "scaling": {"min_workers": 1, "max_workers": 3}}, "b": {"path": "x"}}


def settings(folder: Path, models: dict[str, Any] | None = None, **sections: Any) -> Settings:
    file = folder / "muster.yaml"
    file.write_text(yaml.safe_dump({"models": MODELS if models is None else models} | sections))
    return load(file)


def with_a(**changes: Any) -> dict[str, Any]:
    return MODELS | {"a": MODELS["a"] | changes}


#: (models, other sections, applied, by new workers, needs a restart)
CASES: list[tuple[dict[str, Any], dict[str, Any], list[str], list[str], list[str]]] = [
    (MODELS, {}, [], [], []),
    (
        with_a(scaling={"min_workers": 2, "max_workers": 3, "max_worker_age_s": 60}),
        {},
        ["models.a.scaling.max_worker_age_s: none -> 60.0", "models.a.scaling.min_workers: 1 -> 2"],
        [],
        [],
    ),
    (MODELS, {"max_workers": 2}, ["max_workers: none -> 2"], [], []),
    (MODELS, {"workers": {"start_timeout_s": 5}}, ["workers.start_timeout_s: 600.0 -> 5.0"], [], []),
    (MODELS, {"workers": {"lost_after_s": 5}}, [], [], ["workers.lost_after_s: 10.0 -> 5.0"]),
    (with_a(max_batch_size=3), {}, [], ["models.a.max_batch_size: auto -> 3"], []),
    (with_a(sim={"t0_s": 0.5}), {}, [], ["models.a.sim.t0_s: 0.008 -> 0.5"], []),
    (MODELS | {"b": {"path": "y"}}, {}, [], ["models.b.path: x -> y"], []),
    (with_a(limits={"max_steps": 99}), {}, [], [], ["models.a.limits.max_steps: 150 -> 99"]),
    (
        with_a(quality={"high": {"steps": 50}}),
        {},
        [],
        [],
        ["models.a.quality: {} -> none", "models.a.quality.high.steps: none -> 50"],
    ),
    (with_a(batching={"mode": "grouped"}), {}, [], [], ["models.a.batching.mode: step -> grouped"]),
    (with_a(batching={"min_gain": 0.5}), {}, [], ["models.a.batching.min_gain: 0.05 -> 0.5"], []),
    (
        with_a(scaling=MODELS["a"]["scaling"] | {"slo": {"max_wait_s": 3}, "interval_s": 5}),
        {},
        ["models.a.scaling.interval_s: 30.0 -> 5.0"],
        [],
        ["models.a.scaling.slo.max_wait_s: 10.0 -> 3.0"],
    ),
    (MODELS | {"c": {"path": "z"}}, {}, [], [], ["models.c is new"]),
    ({"a": MODELS["a"]}, {}, [], [], ["models.b is gone"]),
    (MODELS, {"server": {"port": 9000}}, [], [], ["server.port: 8000 -> 9000"]),
    (
        with_a(dtype="float16", scaling={"min_workers": 1, "max_workers": 4}),
        {"queue": {"max_tasks": 500}},
        ["models.a.scaling.max_workers: 3 -> 4"],
        ["models.a.dtype: auto -> float16"],
        ["queue.max_tasks: 1024 -> 500"],
    ),
]


@pytest.mark.parametrize(("models", "sections", "applied", "rolling", "needs_restart"), CASES)
def test_three_kinds_of_settings(
    tmp_path: Path,
    models: dict[str, Any],
    sections: dict[str, Any],
    applied: list[str],
    rolling: list[str],
    needs_restart: list[str],
) -> None:
    old, new = settings(tmp_path), settings(tmp_path, models, **sections)
    found = diff_settings(old, new)
    assert (list(found.applied), list(found.rolling), list(found.needs_restart)) == (applied, rolling, needs_restart)
    # The settings in force are exactly the reported ones, and the workers' file can hold them.
    assert (found.settings == old) is not bool(applied or rolling)
    assert diff_settings(found.settings, new).needs_restart == tuple(needs_restart)
    assert not diff_settings(found.settings, new).applied
    written = tmp_path / "written.yaml"
    written.write_text(to_yaml(found.settings))
    assert load(written) == found.settings
    rolled = {name for name in old.models if generation(old, name) != generation(found.settings, name)}
    assert rolled == {text.split(".")[1] for text in rolling}


def test_change_is_described_in_a_line(tmp_path: Path) -> None:
    old = settings(tmp_path)
    assert str(diff_settings(old, old)) == "nothing has changed"
    new = settings(tmp_path, with_a(max_batch_size=3), max_workers=2, log_level="debug")
    assert str(diff_settings(old, new)) == (
        "applied: max_workers: none -> 2. by new workers: models.a.max_batch_size: auto -> 3. "
        "needs a restart: log_level: info -> debug"
    )
