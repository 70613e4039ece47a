"""Defaults of pipelines: their signatures, and the table that the balancer uses until a worker is connected."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest

from configs.model_settings import Model
from configs.pipeline_defaults import PIPELINES, with_defaults
from tests.support.tiny_diffusion import CHECKPOINTS
from worker.engines.diffusion.defaults import pipeline_defaults, signature_defaults


@pytest.mark.parametrize("name", PIPELINES)
def test_table_agrees_with_signature(name: str) -> None:
    found, known = signature_defaults(getattr(diffusers, name)), PIPELINES[name]
    assert found[:2] == known[:2]
    assert found.side in (None, known.side)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_balancer_and_worker_agree(tmp_path: Path, name: str) -> None:
    pipeline = CHECKPOINTS[name]()
    pipeline.save_pretrained(tmp_path)
    model = Model.model_validate({"path": str(tmp_path), "limits": {"min_side": 8}})
    assert with_defaults(model).defaults == with_defaults(model, pipeline_defaults(pipeline)).defaults
