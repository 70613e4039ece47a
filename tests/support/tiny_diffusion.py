"""Tiny checkpoints of every supported family with random weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from configs.model_parts import BUILTIN_DIR
from configs.model_sections import Defaults, Limits
from configs.model_settings import Model
from wire.inputs import ImageInputs
from worker.engine import EngineRequest, TaskError
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.row import DiffusionRow

SIZE = 32
#: Width of the text embeddings.
_WIDTH = 32


def pipeline(
    prediction_type: str = "epsilon", in_channels: int = 4, time_cond_proj_dim: int | None = None
) -> diffusers.StableDiffusionPipeline:
    """A Stable Diffusion with all parts."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    return _quiet(
        diffusers.StableDiffusionPipeline(
            vae=_vae(4),
            text_encoder=CLIPTextModel(_clip_config(tokenizer)).eval(),
            tokenizer=tokenizer,
            unet=_unet(in_channels=in_channels, time_cond_proj_dim=time_cond_proj_dim),
            scheduler=_ddim(prediction_type),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sdxl(in_channels: int = 4, **vae: Any) -> diffusers.StableDiffusionXLPipeline:
    """A Stable Diffusion XL with all parts."""
    torch.manual_seed(1)
    tokenizer = clip_tokenizer()
    unet = _unet(
        in_channels=in_channels,
        cross_attention_dim=2 * _WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
    )
    return _quiet(
        diffusers.StableDiffusionXLPipeline(
            vae=_vae(4, **vae),
            text_encoder=CLIPTextModel(_clip_config(tokenizer)).eval(),
            text_encoder_2=CLIPTextModelWithProjection(_clip_config(tokenizer)).eval(),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=unet,
            scheduler=_ddim("epsilon"),
        )
    )


def sd3(shifting: bool = False, t5: bool = True) -> diffusers.StableDiffusion3Pipeline:
    """A Stable Diffusion 3 with all parts; timestep shift and T5 are optional."""
    torch.manual_seed(2)
    tokenizer = clip_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * _WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * _WIDTH,
        out_channels=16,
        pos_embed_max_size=32,
    )
    return _quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=shifting),
            vae=_vae(16, scaling_factor=1.5, shift_factor=0.1),
            text_encoder=CLIPTextModelWithProjection(_clip_config(tokenizer)).eval(),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(_clip_config(tokenizer)).eval(),
            tokenizer_2=tokenizer,
            text_encoder_3=_t5(2 * _WIDTH) if t5 else None,
            tokenizer_3=t5_tokenizer() if t5 else None,
        )
    )


def flux(guidance_embeds: bool = True) -> diffusers.FluxPipeline:
    """A FLUX with all parts: dev with guidance embedding, or schnell without."""
    torch.manual_seed(3)
    tokenizer = clip_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        pooled_projection_dim=_WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    schedule = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
    )
    return _quiet(
        diffusers.FluxPipeline(
            scheduler=schedule,
            vae=_vae(16, scaling_factor=1.5, shift_factor=0.1),
            text_encoder=CLIPTextModel(_clip_config(tokenizer)).eval(),
            tokenizer=tokenizer,
            text_encoder_2=_t5(_WIDTH),
            tokenizer_2=t5_tokenizer(),
            transformer=transformer.eval(),
        )
    )


#: Checkpoints of all supported families, by test id.
CHECKPOINTS: dict[str, Callable[[], Any]] = {
    "sd": pipeline,
    "sd-velocity": lambda: pipeline("v_prediction"),
    "sd-inpaint": lambda: pipeline(in_channels=9),
    "sd-distilled": lambda: pipeline(time_cond_proj_dim=16),
    "sdxl": sdxl,
    "sdxl-inpaint": lambda: sdxl(in_channels=9),
    "sd3": sd3,
    "sd3-shifting-without-t5": lambda: sd3(shifting=True, t5=False),
    "flux-dev": flux,
    "flux-schnell": lambda: flux(guidance_embeds=False),
}


def clip_tokenizer() -> CLIPTokenizer:
    """Return the built-in model's tokenizer, which pads any text to 16 tokens."""
    return CLIPTokenizer.from_pretrained(BUILTIN_DIR / "digits" / "tokenizer")


def t5_tokenizer() -> T5TokenizerFast:
    """Return a tokenizer with one token per letter."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return T5TokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0
    )


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        projection_dim=_WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=40, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, use_cache=False)
    ).eval()


def _unet(**options: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        sample_size=SIZE // 8,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        **({"cross_attention_dim": _WIDTH} | options),
    ).eval()


def _vae(channels: int, **options: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        **options,
    ).eval()


def _ddim(prediction_type: str) -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _quiet(made: Any) -> Any:
    made.set_progress_bar_config(disable=True)
    return made


def engine_of(folder: Path, **settings: Any) -> DiffusionEngine:
    """Return a loaded engine for the checkpoint in this folder."""
    defaults = Defaults(size=f"{SIZE}x{SIZE}", steps=4, guidance_scale=3.0, scheduler="default")
    model = Model(path=str(folder), defaults=defaults, limits=Limits(min_side=8), **settings)
    engine = DiffusionEngine(model, "cpu")
    engine.load()
    return engine


def request(**changes: Any) -> ImageInputs:
    """Return a request with guidance and the checkpoint's own scheduler by default."""
    usual = ImageInputs("a red seven", SIZE, SIZE, steps=6, guidance_scale=3.0, seed=1, scheduler="default")
    return msgspec.structs.replace(usual, **changes)


def engine_request(inputs: ImageInputs, **given: Any) -> EngineRequest:
    """Add the source images of the mode, derived from the seed."""
    size = inputs.width * inputs.height
    made = random.Random(inputs.seed)
    image = made.randbytes(3 * size)
    protected_size = made.randrange(size // 4, size // 2)
    mask = bytes(protected_size) + b"\xff" * (size - protected_size)
    return EngineRequest(inputs, {"text": [], "image": [image], "inpaint": [image, mask]}[inputs.mode], **given)


def admit(engine: DiffusionEngine, *requests: ImageInputs | EngineRequest) -> list[DiffusionRow]:
    """Return rows for these requests; raise on rejection."""
    rows = []
    for row in engine.admit([one if isinstance(one, EngineRequest) else engine_request(one) for one in requests]):
        if isinstance(row, TaskError):
            raise row
        assert isinstance(row, DiffusionRow)
        rows.append(row)
    return rows


def finish(engine: DiffusionEngine, *rows: DiffusionRow) -> None:
    """Step the rows in one batch until all are finished."""
    while unfinished := [row for row in rows if row.step < row.steps]:
        engine.step(unfinished)


def run(engine: DiffusionEngine, joining: Sequence[tuple[int, ImageInputs]]) -> list[DiffusionRow]:
    """Step all rows in one batch; each request joins at its tick and leaves when finished."""
    rows: list[DiffusionRow] = []
    tick = max_rows = 0
    while len(rows) < len(joining) or any(row.step < row.steps for row in rows):
        rows += admit(engine, *(inputs for at, inputs in joining if at == tick))
        running = [row for row in rows if row.step < row.steps]
        max_rows = max(max_rows, len(running))
        engine.step(running)
        tick += 1
    assert max_rows > 1, "rows must share a step"
    return rows
