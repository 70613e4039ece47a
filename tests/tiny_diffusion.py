"""A Stable Diffusion checkpoint with random weights: the built-in model's tokenizer, everything else far smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from configs.schema import Defaults, Limits, Model
from wire.messages import ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.loading import BUILTIN
from worker.engines.diffusion.rows import DiffusionRow

SIZE = 32


def pipeline(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """Every part that Stable Diffusion has, at random."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(BUILTIN / "digits" / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=8,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
    )
    schedule = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    made = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def engine_of(folder: Path) -> DiffusionEngine:
    """A loaded engine for the checkpoint in this folder."""
    limits = Limits(min_side=8)
    defaults = Defaults(size=f"{SIZE}x{SIZE}", steps=4, guidance_scale=3.0, scheduler="default")
    engine = DiffusionEngine(Model(path=str(folder), defaults=defaults, limits=limits), "cpu")
    engine.load()
    return engine


def request(**changes: Any) -> ImageInputs:
    """A request that needs guidance and the checkpoint's own scheduler, unless it is told otherwise."""
    usual = ImageInputs("a red seven", SIZE, SIZE, steps=6, guidance_scale=3.0, seed=1, scheduler="default")
    return msgspec.structs.replace(usual, **changes)


def admitted(engine: DiffusionEngine, *wanted: ImageInputs) -> list[DiffusionRow]:
    """Rows for these requests, none of which may be refused."""
    rows = []
    for row in engine.admit([(inputs, None) for inputs in wanted]):
        if isinstance(row, TaskError):
            raise row
        assert isinstance(row, DiffusionRow)
        rows.append(row)
    return rows


def finish(engine: DiffusionEngine, *rows: DiffusionRow) -> None:
    """Step these until each is done, all of them in one batch."""
    while unfinished := [row for row in rows if row.step < row.steps]:
        engine.step(unfinished)
