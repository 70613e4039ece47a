"""Validation of LoRA files.

The libraries ignore what they do not understand, and some files change the model itself permanently. A server must
allow neither: a file is applied completely, in layers beside the model's own, or rejected.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors import safe_open

#: Larger than an adapter of high rank for every layer of FLUX.
_MAX_FILE_BYTES = 4 << 30
#: Training settings that may differ from the defaults. Others make PEFT do more than add layers.
_ALLOWED_SETTINGS = frozenset(
    {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "lora_dropout"),
        *("target_modules", "exclude_modules", "inference_mode", "peft_type", "peft_version", "task_type"),
        *("base_model_name_or_path", "revision", "auto_mapping"),
    }
)


#: Shapes of the weights of a model's layers, by path. None: the layer has no weight.
LayerSizes = Mapping[str, torch.Size | None]


def layer_sizes(part: torch.nn.Module) -> LayerSizes:
    """Return the shapes of the part's weights. Without adapters in it."""
    weights = {path: getattr(layer, "weight", None) for path, layer in part.named_modules()}
    return {path: weight.shape if isinstance(weight, torch.Tensor) else None for path, weight in weights.items()}


def validate_lora_file(path: Path, pipeline: Any, parts: Mapping[str, LayerSizes]) -> dict[str, int]:
    """Validate the file against these parts of the pipeline, the denoiser first. Return its tensors for each part.

    Raises `ValueError` for a file that does not fit, and the libraries' errors for a damaged file.
    """
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {_MAX_FILE_BYTES >> 30} GiB")
    with safe_open(path, framework="pt") as file:  # checks the header against the file's length
        settings = json.loads((file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
        if any("dora_scale" in key for key in file.keys()):  # noqa: SIM118 - it is no dict
            raise ValueError("its magnitudes (dora_scale) cannot be applied")
    weights = _load_weights(path, pipeline)
    counts = {name: _validate_weights(weights, name, part) for name, part in parts.items()}
    _validate_settings(settings, parts)
    return counts


def _validate_settings(settings: Mapping[str, Any], parts: Collection[str]) -> None:
    usual = LoraConfig().to_dict()  # type: ignore[no-untyped-call]
    for key, value in settings.items():
        setting = next((key.removeprefix(f"{part}.") for part in parts if key.startswith(f"{part}.")), key)
        if setting == "init_lora_weights" and (isinstance(value, bool) or value == "gaussian"):
            continue  # other values recompute the model's own weights
        if setting not in _ALLOWED_SETTINGS and (value or None) != (usual.get(setting) or None):
            raise ValueError(f"it does more than add layers: {setting} is {value!r}")


def _load_weights(path: Path, pipeline: Any) -> dict[str, torch.Tensor]:
    """Return the weights under diffusers' names, such as `part.layer.lora_A.weight`."""
    options = {"unet_config": pipeline.unet.config} if isinstance(pipeline, StableDiffusionXLLoraLoaderMixin) else {}
    converted = pipeline.lora_state_dict(
        str(path.parent),
        weight_name=path.name,
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
        **options,
    )
    weights: dict[str, torch.Tensor] = {key: value for key, value in converted[0].items() if not key.endswith(".alpha")}
    for key in weights:
        if "lora" not in key or key.partition(".")[0] not in pipeline._lora_loadable_modules:
            raise ValueError(f"it holds {key}, which is not a weight of an adapter for this model")
    if not weights:
        raise ValueError("it is empty")
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise ValueError("its weights are not finite")
    return weights


def _validate_weights(weights: Mapping[str, torch.Tensor], name: str, layers: LayerSizes) -> int:
    """Return the number of weights for this part. Raises `ValueError` for a wrong layer size.

    Check before loading, because diffusers enlarges some layers to fit the file.
    """
    own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
    for key, value in own.items():
        layer, lora, side = key.partition(".lora_")
        if lora and (size := layers.get(layer)) is not None:
            wrong = side == "A.weight" and value.shape[1] != size[1]
            if wrong or (side == "B.weight" and value.shape[0] != size[0]):
                raise ValueError(f"{layer} has a different size")
    return len(own)
