"""LoRA files with random weights, created by PEFT and saved by their pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.tiny_diffusion import pipeline

CPU = torch.device("cpu")
#: Target layers of each part.
DENOISER = ("to_q", "to_k", "to_v", "to_out.0")
ENCODER = ("q_proj", "v_proj", "out_proj", "fc1")
#: diffusers' metadata key for the training settings.
_SETTINGS = "lora_adapter_metadata"


def save_lora(
    folder: Path,
    name: str,
    make: Callable[[], Any],
    seed: int = 0,
    parts: Mapping[str, Sequence[str]] | None = None,
    rank: int = 4,
    alpha: int = 8,
) -> Path:
    """Save an adapter for the pipeline from `make`: for its denoiser, or for the given layers of each part."""
    made = make()
    torch.manual_seed(seed)
    denoiser = made._lora_loadable_modules[0]
    layers: dict[str, Any] = {}
    lora_scales = {}
    for part, targets in (parts or {denoiser: DENOISER}).items():
        module = getattr(made, part)
        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=False, target_modules=list(targets))
        module.add_adapter(config, "default")
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(module, adapter_name="default")
        lora_scales[part] = module
    made.save_lora_weights(folder, weight_name=f"{name}.safetensors", **layers, **_collate_lora_metadata(lora_scales))
    return folder / f"{name}.safetensors"


def save_two(folder: Path) -> Path:
    """Save `ink`, for the denoiser, and `wet.v1`, for denoiser and text encoder. Return the folder."""
    save_lora(folder, "ink", pipeline, seed=1)
    save_lora(folder, "wet.v1", pipeline, seed=2, parts={"unet": DENOISER, "text_encoder": ENCODER}, rank=2)
    return folder


def rewrite(
    path: Path,
    weights: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict,
    settings: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Change the file's weights or training settings."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata[_SETTINGS] = json.dumps(settings(json.loads(metadata[_SETTINGS])))
    save_file(weights(load_file(path)), path, metadata)


def parts_of(made: Any) -> dict[str, Any]:
    """Return everything in the model that an adapter could change."""
    state: dict[str, Any] = {}
    for name in made._lora_loadable_modules:
        state |= {f"{name}.{path}": type(module) for path, module in getattr(made, name).named_modules()}
        state |= {f"{name}.{path}": value.clone() for path, value in getattr(made, name).state_dict().items()}
    return state


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value is after[name]
        for name, value in before.items()
    )


@torch.inference_mode()
def denoiser_output(made: Any) -> torch.Tensor:
    """Encode a text and return the denoiser's output for it."""
    reported = made.encode_prompt("a red seven", CPU, 1, False)[0]
    found: torch.Tensor = made.unet(torch.ones(1, 4, 4, 4), 500, reported).sample
    return found
