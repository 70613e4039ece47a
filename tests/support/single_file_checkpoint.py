"""The tiny Stable Diffusion as a single file, with the weight names of published files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import diffusers
import safetensors.torch
import torch

Name = str | Callable[[re.Match[str]], str]
#: Blocks of the tiny model: two, each with one layer down and two layers up.
_DOWN, _UP = 2, 2
_VAE_BLOCKS = 4

_RESNET: list[tuple[str, Name]] = [
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
]
_UNET: list[tuple[str, Name]] = [
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{1 + _DOWN * int(m[1]) + int(m[2])}.0"),
    (r"^down_blocks\.(\d)\.attentions\.(\d)", lambda m: f"input_blocks.{1 + _DOWN * int(m[1]) + int(m[2])}.1"),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{_DOWN * (int(m[1]) + 1)}.0.op"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{_UP * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{_UP * int(m[1]) + int(m[2])}.1"),
    (r"^up_blocks\.(\d)\.upsamplers\.0", lambda m: f"output_blocks.{_UP * (int(m[1]) + 1) - 1}.2"),
]
_VAE: list[tuple[str, Name]] = [
    (r"\.conv_norm_out", ".norm_out"),
    (r"\.down_blocks\.(\d)\.resnets", r".down.\1.block"),
    (r"\.down_blocks\.(\d)\.downsamplers\.0", r".down.\1.downsample"),
    (r"\.up_blocks\.(\d)\.resnets", lambda m: f".up.{_VAE_BLOCKS - 1 - int(m[1])}.block"),
    (r"\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f".up.{_VAE_BLOCKS - 1 - int(m[1])}.upsample"),
    (r"\.mid_block\.resnets\.(\d)", lambda m: f".mid.block_{int(m[1]) + 1}"),
    (r"\.mid_block\.attentions\.0", ".mid.attn_1"),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
]


def save_single_file(made: diffusers.StableDiffusionPipeline, file: Path) -> None:
    """Save all weights of `tiny_diffusion.pipeline` in one file."""
    weights = _renamed(made.unet, "model.diffusion_model.", _UNET, _RESNET)
    weights |= _renamed(made.vae, "first_stage_model.", _VAE, [])
    weights |= _renamed(made.text_encoder, "cond_stage_model.transformer.text_model.", [], [])
    safetensors.torch.save_file(weights, file)


def _renamed(
    part: torch.nn.Module, prefix: str, names: list[tuple[str, Name]], of_resnets: list[tuple[str, Name]]
) -> dict[str, torch.Tensor]:
    state: Mapping[str, torch.Tensor] = part.state_dict()
    renamed = {}
    for old, value in state.items():
        new = old
        for pattern, name in [*names, *(of_resnets if ".resnets." in old else [])]:
            new = re.sub(pattern, name, new)
        renamed[prefix + new] = value.contiguous()
    return renamed
