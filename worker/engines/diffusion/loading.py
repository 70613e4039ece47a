"""From a configured path to a checkpoint on its device: safetensors only, and never code from the checkpoint."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
import transformers

from configs.schema import Model
from worker.engines.diffusion.family import FAMILIES, StableDiffusion

BUILTIN = Path(__file__).parents[2] / "builtin"
_BUILTIN_PREFIX = "builtin:"


class UnsupportedModel(Exception):
    """The configured checkpoint is not there, or is none that this engine can run. The text says what it found."""


def load_family(model: Model, device: torch.device) -> StableDiffusion:
    """The checkpoint, ready to run on the device. Raises `UnsupportedModel`, or `OSError` where files are missing."""
    _quiet()
    source, local = locate(model.path)
    name = diffusers.DiffusionPipeline.load_config(source, local_files_only=local).get("_class_name")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise UnsupportedModel(f"{model.path} is a {name}; supported: {', '.join(FAMILIES)}")
    pipeline = getattr(diffusers, name).from_pretrained(
        source,
        dtype=dtype_of(model, device),
        use_safetensors=True,
        local_files_only=local,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    if pipeline.unet.config.time_cond_proj_dim is not None:
        raise UnsupportedModel(f"{model.path} takes guidance as an input of its UNet, which is not supported")
    return family(pipeline.to(device), device)


def locate(path: str) -> tuple[str, bool]:
    """Where the checkpoint is, and whether that is a folder of this machine. Raises `UnsupportedModel`."""
    if path.startswith(_BUILTIN_PREFIX):
        folder = BUILTIN / path.removeprefix(_BUILTIN_PREFIX)
        if not (folder / "model_index.json").is_file():
            there = sorted(index.parent.name for index in BUILTIN.glob("*/model_index.json"))
            raise UnsupportedModel(f"no built-in model {folder.name!r}; built in: {', '.join(there)}")
        return str(folder), True
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder), True
    if path.startswith(("/", ".", "~")):
        raise UnsupportedModel(f"no such folder: {path}")
    return path, False


def dtype_of(model: Model, device: torch.device) -> torch.dtype:
    """The configured precision; `auto` is float16 on a GPU and float32 on a CPU."""
    if model.dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[model.dtype]


def _quiet() -> None:
    """The libraries' bars and advice are for notebooks; and a warning about a long prompt would log the prompt."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
