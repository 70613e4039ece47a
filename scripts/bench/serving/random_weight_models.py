"""Pipelines of published size with random weights, because step times do not depend on the values.

Nothing is downloaded. Prompts use the built-in model's tokenizer, padded to each family's training length. The T5 of
SD3 and FLUX has its full width but two of its 24 layers. `tiny` makes every part small, to try a benchmark without a
GPU.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from configs.model_parts import BUILTIN_DIR, Dtype
from configs.model_settings import Model
from scripts.bench.serving.denoiser_configs import DENOISERS
from worker.engines.diffusion.loading import open_pipeline

_TOKENS = 77
_T5_LAYERS = 2
_DTYPE_NAMES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def pipeline(family: str, device: torch.device, dtype: torch.dtype, *, tiny: bool) -> Any:
    """Build the family's pipeline on the device; `digits` is the built-in model."""
    if family == "digits":
        model = Model(path="builtin:digits", dtype=_DTYPE_NAMES[dtype])
        return open_pipeline(model, device, "StableDiffusionPipeline")
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made = _BUILDERS[family](DENOISERS[family].build(tiny=tiny), tiny)
    finally:
        torch.set_default_dtype(usual)
    made.set_progress_bar_config(disable=True)
    return made.to(device, dtype)


def denoiser_of(pipe: Any) -> Any:
    """Return the module that every step runs."""
    return getattr(pipe, _denoiser_name(pipe))


def twin(pipe: Any) -> Any:
    """Return a pipeline with separate modules and scheduler that shares the weights."""
    name, made = _denoiser_name(pipe), copy.copy(pipe)
    denoiser = getattr(pipe, name)
    shared = {id(tensor): tensor for tensor in itertools.chain(denoiser.parameters(), denoiser.buffers())}
    setattr(made, name, copy.deepcopy(denoiser, shared))
    if made.vae.dtype != denoiser.dtype:  # the engine keeps SDXL's in float32; the pipeline converts it for each decode
        made.vae = copy.deepcopy(made.vae).to(denoiser.dtype)
    made.scheduler = copy.deepcopy(pipe.scheduler)
    return made


def parameters(pipe: Any) -> int:
    """Return the number of parameters of the denoiser."""
    return sum(parameter.numel() for parameter in denoiser_of(pipe).parameters())


def _denoiser_name(pipe: Any) -> str:
    return "unet" if hasattr(pipe, "unet") else "transformer"


# ---- families


def _sd15(denoiser: Any, tiny: bool) -> Any:
    tokenizer = _clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=_vae(tiny, scaling_factor=0.18215),
        text_encoder=_clip_l(CLIPTextModel, tokenizer, tiny),
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=_ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(denoiser: Any, tiny: bool) -> Any:
    tokenizer = _clip_tokenizer()
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(tiny, scaling_factor=0.13025, force_upcast=True),
        text_encoder=_clip_l(CLIPTextModel, tokenizer, tiny),
        text_encoder_2=_clip_g(tokenizer, tiny),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=denoiser,
        scheduler=_ddim(),
    )


def _sd3(denoiser: Any, tiny: bool) -> Any:
    tokenizer = _clip_tokenizer()
    return diffusers.StableDiffusion3Pipeline(
        transformer=denoiser,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae16(tiny, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=_clip_l(CLIPTextModelWithProjection, tokenizer, tiny),
        tokenizer=tokenizer,
        text_encoder_2=_clip_g(tokenizer, tiny),
        tokenizer_2=tokenizer,
        text_encoder_3=_t5(128 if tiny else 4096),
        tokenizer_3=_t5_tokenizer(),
    )


def _flux(denoiser: Any, tiny: bool) -> Any:
    tokenizer = _clip_tokenizer()
    schedule = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return diffusers.FluxPipeline(
        scheduler=schedule,
        vae=_vae16(tiny, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=_clip_l(CLIPTextModel, tokenizer, tiny),
        tokenizer=tokenizer,
        text_encoder_2=_t5(64 if tiny else 4096),
        tokenizer_2=_t5_tokenizer(),
        transformer=denoiser,
    )


_BUILDERS: dict[str, Callable[[Any, bool], Any]] = {"sd15": _sd15, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}


# ---- parts


def _ddim() -> Any:
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _vae(tiny: bool, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 32, 32, 32) if tiny else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if tiny else 2,
        **options,
    ).eval()


def _vae16(tiny: bool, **options: Any) -> Any:
    return _vae(tiny, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **options)


def _clip_tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(BUILTIN_DIR / "digits" / "tokenizer", model_max_length=_TOKENS)


def _clip_l(cls: Any, tokenizer: Any, tiny: bool) -> Any:
    return _clip(cls, tokenizer, *((64, 2, 4) if tiny else (768, 12, 12)), "quick_gelu")


def _clip_g(tokenizer: Any, tiny: bool) -> Any:
    return _clip(CLIPTextModelWithProjection, tokenizer, *((64, 2, 4) if tiny else (1280, 32, 20)), "gelu")


def _clip(cls: Any, tokenizer: Any, width: int, layers: int, heads: int, activation: str) -> Any:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        projection_dim=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=_TOKENS,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return cls(config).eval()


def _t5(width: int) -> Any:
    config = T5Config(
        vocab_size=32128,
        d_model=width,
        d_kv=64,
        d_ff=width * 5 // 2,
        num_layers=_T5_LAYERS,
        num_heads=width // 64,
        feed_forward_proj="gated-gelu",
        use_cache=False,
    )
    return T5EncoderModel(config).eval()


def _t5_tokenizer() -> Any:
    """Return a tokenizer with one token per letter."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = Tokenizer(Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return T5TokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0
    )
