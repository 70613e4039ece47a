"""Previews by a small autoencoder, and images by the checkpoint's own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from configs.model_parts import Vae
from tests.support.tiny_diffusion import CHECKPOINTS, SIZE, admit, engine_of, request
from worker.engine import UnsupportedModel
from worker.engines.diffusion.engine import DiffusionEngine

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A checkpoint with a small autoencoder of so many latent channels in one of its folders."""

    def make(kind: str = "sd", channels: int | None = None, name: str = "model/taesd") -> Path:
        made = CHECKPOINTS[kind]()
        made.save_pretrained(tmp_path / "model")
        torch.manual_seed(0)
        latent = channels or int(made.vae.config.latent_channels)
        factor = int(made.vae_scale_factor)
        levels = factor.bit_length()
        tiny = diffusers.AutoencoderTiny(
            latent_channels=latent,
            encoder_block_out_channels=(8,) * levels,
            decoder_block_out_channels=(8,) * levels,
            num_encoder_blocks=(1,) * levels,
            num_decoder_blocks=(1,) * levels,
        )
        tiny.save_pretrained(tmp_path / name)
        return tmp_path / "model"

    return make


def decoders_used(engine: DiffusionEngine) -> list[str]:
    """Generate an image with a preview; return which autoencoder made each of the two."""
    used: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *given: used.append(name)

    tiny: Any = engine._tiny_vae
    modules = {"own": engine._family.vae.decoder} | ({} if tiny is None else {"tiny": tiny.decoder})
    hooks = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    [row] = admit(engine, request(steps=3))
    engine.step([row])
    preview = engine.render(row)()
    while row.step < row.steps:
        engine.step([row])
    image = engine.render(row)()
    for hook in hooks:
        hook.remove()
    for result in (preview, image):
        with Image.open(io.BytesIO(result.data)) as decoded:
            assert decoded.size == (SIZE, SIZE)
    return used


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux-dev"])
def test_a_folder_of_the_checkpoint_is_used_for_previews(kind: str, folder: Folder) -> None:
    assert decoders_used(engine_of(folder(kind))) == ["tiny", "own"]


def test_a_named_one_is_used(folder: Folder, tmp_path: Path) -> None:
    model = folder(name="elsewhere")
    assert decoders_used(engine_of(model)) == ["own", "own"]
    assert decoders_used(engine_of(model, vae=Vae(preview=str(tmp_path / "elsewhere")))) == ["tiny", "own"]


def test_it_can_be_switched_off(folder: Folder) -> None:
    assert decoders_used(engine_of(folder(), vae=Vae(preview="off"))) == ["own", "own"]


def test_one_of_another_family_is_not_used(folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = folder(channels=16)
    assert decoders_used(engine_of(model)) == ["own", "own"]
    assert "is for 16 latent channels, the model has 4" in caplog.text
    with pytest.raises(UnsupportedModel, match="16 latent channels"):
        engine_of(model, vae=Vae(preview=str(model / "taesd")))


def test_what_is_none_is_refused(folder: Folder) -> None:
    with pytest.raises(UnsupportedModel, match=r"vae\.preview: .* it is an UNet2DConditionModel"):
        engine_of(folder(), vae=Vae(preview=str(folder() / "unet")))
