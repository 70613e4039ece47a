"""Defaults of requests where the configuration says nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from configs.model_settings import Model
from configs.pipeline_defaults import PipelineDefaults, with_defaults


def checkpoint(folder: Path, pipeline: str, sample_size: int, denoiser: str = "unet") -> Path:
    """Write the files of a checkpoint that name its class and sizes."""
    files: dict[str, Any] = {
        "model_index.json": {"_class_name": pipeline},
        f"{denoiser}/config.json": {"sample_size": sample_size},
        "vae/config.json": {"block_out_channels": [128, 256, 512, 512]},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


#: Class, size of its latents, what is configured, and the resulting size, steps and guidance.
CASES: list[tuple[str, int, dict[str, Any], tuple[str, int, float]]] = [
    ("StableDiffusionPipeline", 64, {}, ("512x512", 50, 7.5)),
    ("StableDiffusionPipeline", 96, {}, ("768x768", 50, 7.5)),
    ("StableDiffusionXLPipeline", 128, {}, ("1024x1024", 50, 5.0)),
    ("StableDiffusion3Pipeline", 128, {}, ("1024x1024", 28, 7.0)),
    ("FluxPipeline", 0, {}, ("1024x1024", 28, 3.5)),
    ("SanaPipeline", 32, {}, ("1024x1024", 20, 4.5)),
    ("NobodyKnowsItPipeline", 64, {}, ("512x512", 25, 7.5)),
    ("FluxPipeline", 0, {"defaults": {"steps": 4, "guidance_scale": 0}}, ("1024x1024", 4, 0.0)),
    ("FluxPipeline", 0, {"defaults": {"size": "512x768"}}, ("512x768", 28, 3.5)),
    ("FluxPipeline", 0, {"limits": {"max_pixels": 512 * 512, "max_steps": 8}}, ("512x512", 8, 3.5)),
    ("FluxFillPipeline", 0, {"limits": {"max_guidance_scale": 10}}, ("1024x1024", 50, 10.0)),
]


@pytest.mark.parametrize(("pipeline", "latents", "configured", "expected"), CASES)
def test_unset_defaults_come_from_the_checkpoint(
    tmp_path: Path, pipeline: str, latents: int, configured: dict[str, Any], expected: tuple[str, int, float]
) -> None:
    folder = checkpoint(tmp_path / "model", pipeline, latents)
    found = with_defaults(Model.model_validate({"path": str(folder), **configured})).defaults
    assert (found.size, found.steps, found.guidance_scale) == expected


def test_pipe_in_a_checkpoint_has_no_defaults(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", "StableDiffusionXLPipeline", 128)
    (folder / "model_index.json").unlink()
    os.mkfifo(folder / "model_index.json")
    assert with_defaults(Model(path=str(folder))).defaults.steps == 25


def test_defaults_of_a_single_file_are_those_of_its_base(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model", "StableDiffusionXLPipeline", 128)
    checkpoint(tmp_path / "base", "StableDiffusionPipeline", 64)
    file = str(tmp_path / "model.safetensors")
    assert with_defaults(Model(path=file)).defaults.size == "1024x1024"
    assert with_defaults(Model(path=file, base=str(tmp_path / "base"))).defaults.size == "512x512"


def test_what_a_worker_reports_comes_before_files() -> None:
    defaults = with_defaults(Model(path="org/model"), PipelineDefaults(9, 0.0, 768)).defaults
    assert (defaults.size, defaults.steps, defaults.guidance_scale) == ("768x768", 9, 0.0)


def test_built_in_model_and_simulation() -> None:
    assert with_defaults(Model(path="builtin:digits")).defaults.size == "64x64"
    simulated = with_defaults(Model(engine="sim")).defaults
    assert (simulated.size, simulated.steps, simulated.guidance_scale) == ("512x512", 25, 7.5)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"_class_name": 5}', "\0"])
def test_damaged_files_give_the_fallback(tmp_path: Path, content: str) -> None:
    (tmp_path / "model_index.json").write_text(content)
    assert with_defaults(Model(path=str(tmp_path))).defaults.size == "512x512"
