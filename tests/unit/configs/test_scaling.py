"""Validation of `scaling`: aliases, contradictions, and fields that the policy does not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.cli import to_yaml
from configs.load import ConfigError, load
from configs.scaling import POLICY_FIELDS, Scaling


def write(tmp_path: Path, scaling: dict[str, Any] | str) -> Path:
    file = tmp_path / "muster.yaml"
    text = scaling if isinstance(scaling, str) else yaml.safe_dump(scaling, default_flow_style=True)
    file.write_text(f"models:\n  m:\n    engine: sim\n    scaling: {text}\n")
    return file


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (
            "{min_replicas: 2, max_replicas: 3, initial_replicas: 2}",
            "{min_workers: 2, max_workers: 3, initial_workers: 2}",
        ),
        ("{schedule: [{cron: '0 8 * * *', min_replicas: 2}]}", "{schedule: [{cron: '0 8 * * *', workers: 2}]}"),
    ],
)
def test_replica_aliases_are_accepted(tmp_path: Path, given: str, same: str) -> None:
    assert load(write(tmp_path, given)).scaling("m") == load(write(tmp_path, same)).scaling("m")


@pytest.mark.parametrize(
    ("scaling", "parts"),
    [
        ("{min_workers: 1, min_replicas: 1}", ["min_workers and min_replicas are the same setting; keep one"]),
        ("{max_workers: 2, max_replicas: 3}", ["max_workers and max_replicas are the same setting"]),
        ("{min_workers: -1}", ["m.scaling.min_workers = -1", "greater than or equal to 0"]),
        ("{min_replicas: -1}", ["m.scaling.min_workers = -1", "greater than or equal to 0"]),
        ("{max_workers: 0}", ["m.scaling.max_workers = 0"]),
        ("{min_workers: 3, max_workers: 2}", ["min_workers (3) must not exceed max_workers (2)"]),
        ("{min_workers: 2, initial_workers: 1}", ["initial_workers (1) must not be below min_workers (2)"]),
        ("{max_workers: 2, initial_workers: 3}", ["initial_workers (3) must not exceed max_workers (2)"]),
        ("{policy: magic}", ["policy = 'magic'", "'slo_work'", "'queue_depth'", "package.module:function"]),
        ("{policy: 'a b:c'}", ["unknown policy"]),
        ("{policy: schedule}", ["needs entries under schedule", "cron: '0 8 * * 1-5'"]),
        ("{interval_s: 0}", ["interval_s = 0", "greater than 0"]),
        ("{drain_s: -1}", ["drain_s = -1"]),
        ("{startup_hold_s: -1, policy: slo_work}", ["startup_hold_s = -1"]),
        ("{cold_start_s: -4}", ["cold_start_s = -4", "'auto'"]),
        ("{slo: {max_wait_s: -1}}", ["slo.max_wait_s = -1"]),
        ("{slo: {percentile: 100}}", ["slo.percentile = 100", "less than 100"]),
        (
            "{look_back_period_s: 900, rate_window_s: 90}",
            ["look_back_period_s (900) must not exceed rate_window_s (90)"],
        ),
        (
            "{policy: slo_work, feedback: {violation_target: 0.05}}",
            ["feedback.violation_target (0.05) must not exceed 0.01", "slo.percentile (99)"],
        ),
        ("{policy: slo_work, behavior: {scale_up: {max_step: 0}}}", ["behavior.scale_up.max_step = 0"]),
        ("{scale_up_at: 2, scale_down_at: 2}", ["scale_down_at (2) must be below scale_up_at (2)"]),
        (
            "{min_workers: 0, max_workers: 2, scale_to_zero: {activation: 3}}",
            ["scale_to_zero.activation (3) must not exceed max_workers (2)"],
        ),
        (
            "{max_workers: 2, schedule: [{cron: '0 8 * * *', workers: 3}]}",
            ["schedule requires 3 workers at '0 8 * * *'", "max_workers (2)"],
        ),
        ("{schedule: [{cron: '0 8 * *', workers: 3}]}", ["five fields", "'0 8 * *'"]),
        ("{schedule: [{cron: '0 25 * * *', workers: 3}]}", ["five fields", "'0 25 * * *'"]),
        (
            "{schedule: [{cron: '0 8 * * *', workers: 1, timezone: Mars/Olympus}]}",
            ["unknown time zone", "Europe/Berlin"],
        ),
        # Fields that the policy does not read.
        (
            "{policy: slo_work, scale_up_at: 4}",
            ["policy slo_work does not use scale_up_at", "remove it, or set policy: queue_depth"],
        ),
        ("{policy: queue_depth, target_ongoing_requests: 4}", ["set policy: ongoing_requests"]),
        ("{policy: static, feedback: {gain: 0.5}}", ["policy static does not use feedback", "slo_work"]),
    ],
)
def test_contradiction_is_rejected_with_advice(tmp_path: Path, scaling: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load(write(tmp_path, scaling))
    for part in parts:
        assert part in str(refused.value)


@pytest.mark.parametrize("policy", [*POLICY_FIELDS, "my_package.scaling:scale"])
def test_printed_settings_load_equal_for_every_policy(tmp_path: Path, policy: str) -> None:
    given = {"policy": policy, "schedule": [{"cron": "0 8 * * 1-5", "workers": 2, "timezone": "Europe/Berlin"}]}
    settings = load(write(tmp_path, given))
    assert load(write_full(tmp_path, to_yaml(settings))) == settings


def write_full(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "full.yaml"
    file.write_text(text)
    return file


def test_custom_policy_may_read_every_field() -> None:
    everything = {"scale_up_at": 4, "target_ongoing_requests": 3, "feedback": {"gain": 0.5}}
    assert Scaling.model_validate({"policy": "mine:scale"} | everything).scale_up_at == 4


@pytest.mark.parametrize(
    ("minimum", "maximum", "initial", "expected"),
    [(4, None, 2, 4), (None, 1, 2, 1), (None, None, 2, 2), (0, None, 2, 2)],
)
def test_initial_workers_follow_top_level_bounds(
    tmp_path: Path, minimum: int | None, maximum: int | None, initial: int, expected: int
) -> None:
    file = write(tmp_path, {"min_workers": 1, "max_workers": 8, "initial_workers": initial})
    assert load(file, {"min_workers": minimum, "max_workers": maximum}).scaling("m").initial_workers == expected
