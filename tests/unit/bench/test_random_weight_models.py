"""The benchmark's random models have the published parameter counts."""

import pytest
import torch

from scripts.bench.serving.denoiser_configs import DENOISERS
from scripts.bench.serving.random_weight_models import denoiser_of, pipeline, twin


@pytest.mark.parametrize(
    ("family", "parameters"),
    [("sd15", 859_520_964), ("sdxl", 2_567_463_684), ("sd3", 2_028_328_000), ("flux", 11_901_408_320)],
)
def test_denoiser_has_published_parameter_count(family: str, parameters: int) -> None:
    with torch.device("meta"):
        denoiser = DENOISERS[family].build(tiny=False)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == parameters


def test_pipeline_twin_shares_only_weights() -> None:
    pipe = pipeline("sd15", torch.device("cpu"), torch.float32, tiny=True)
    other = twin(pipe)
    mine, theirs = denoiser_of(pipe), denoiser_of(other)
    assert other.scheduler is not pipe.scheduler
    assert all(own is not its for own, its in zip(mine.modules(), theirs.modules(), strict=True))
    assert all(own is its for own, its in zip(mine.parameters(), theirs.parameters(), strict=True))
