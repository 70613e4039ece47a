"""The pages on autoscaling: every configuration in them loads, and names of other autoscalers lead to ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs.load import ConfigError, load
from configs.model_settings import Model
from configs.scaling import FIELDS_OF_MODELS, NAMES_ELSEWHERE, POLICY_FIELDS, Scaling
from configs.yaml_file import parse_yaml
from controller.simulator.hardware import read_hardware

_ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted((_ROOT / "docs").glob("autoscaling*.md"))
    for number, block in enumerate(_BLOCK.findall(page.read_text(encoding="utf-8")), 1)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_configurations_in_pages_load(block: str, tmp_path: Path) -> None:
    file = tmp_path / "muster.yaml"
    keys = parse_yaml(block).value.keys()
    file.write_text(block if "models" in keys else f"{block}\nmodels: {{digits: {{path: 'builtin:digits'}}}}")
    if keys & {"image", "text", "machines"}:
        file.write_text(block)
        read_hardware(file)
        return
    settings = load(file)
    for name in settings.models:
        settings.scaling(name)


def test_every_policy_has_a_configuration(tmp_path: Path) -> None:
    page = (_ROOT / "docs" / "autoscaling-migration.md").read_text(encoding="utf-8")
    policies = {
        str(model["scaling"].get("policy", "slo_work"))
        for block in _BLOCK.findall(page)
        for model in parse_yaml(block).value["models"].values()
    }
    assert policies >= {*POLICY_FIELDS, "my_package.policies:by_queue"}


def test_names_elsewhere_lead_to_fields() -> None:
    fields = set(Scaling.model_fields)
    inner = {"scale_up", "scale_down", "stabilization_window_s", "workers"}
    assert {ours.split(".")[0] for ours in NAMES_ELSEWHERE.values()} <= fields | inner | FIELDS_OF_MODELS
    assert set(Model.model_fields) >= FIELDS_OF_MODELS


@pytest.mark.parametrize(
    ("scaling", "says"),
    [
        ("maxReplicaCount: 3", "did you mean `max_workers`"),
        ("scale_up_threshold: 3", "did you mean `scale_up_at`"),
        ("cooldownPeriod: 300", "did you mean `scale_to_zero.idle_s`"),
        ("behavior: {scaleUp: {max_step: 1}}", "did you mean `scale_up`"),
        ("behavior: {scale_down: {stabilizationWindowSeconds: 3}}", "did you mean `stabilization_window_s`"),
        ("max-scale-up-rate: 3", "did you mean `upscaling_factor`"),
        ("scale-to-zero-pod-retention-period: 3", "did you mean `scale_to_zero.idle_s`"),
        ("max_ongoing_requests: 3", "did you mean `max_batch_size` of the model?"),
        ("activationThreshold: 3", "activationThreshold = 3: unknown key; allowed: "),
        ("cold_start_s: 10s", "must be a number of seconds without a unit, such as 10"),
        ("interval_s: 500 ms", "must be a number of seconds without a unit, such as 10"),
        ("slo: {max_wait_s: 1m}", "must be a number of seconds without a unit, such as 10"),
        ("slo: {percentile: 99s}", "valid number"),
    ],
)
def test_settings_of_others_are_explained(scaling: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "muster.yaml"
    file.write_text(f"models: {{digits: {{path: 'builtin:digits', scaling: {{{scaling}}}}}}}")
    with pytest.raises(ConfigError, match=re.escape(says)):
        load(file)
