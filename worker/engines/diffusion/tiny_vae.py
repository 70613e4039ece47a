"""A small autoencoder (TAESD) for previews, where the checkpoint has one. A full decode can take as long as a step."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import torch

from configs.model_settings import Model
from worker.engine import UnsupportedModel
from worker.engines.diffusion.checkpoint_source import Source, locate, locate_model
from worker.engines.diffusion.families.base import Family

log = logging.getLogger(__name__)

_CLASS = "AutoencoderTiny"


def load_tiny_vae(model: Model, family: Family, device: torch.device) -> Any:
    """Return the autoencoder for previews on the device; None if the checkpoint has none, or one of another family.

    Raises `UnsupportedModel` if a configured one cannot be used.
    """
    wanted = model.vae.preview
    source = _in_checkpoint(model) if wanted == "auto" else None if wanted == "off" else locate(wanted)
    if source is None:
        return None
    try:
        config = diffusers.AutoencoderTiny.load_config(source.config, local_files_only=source.local)
        if config.get("_class_name") != _CLASS:
            raise ValueError(f"it is an {config.get('_class_name')}")
        tiny = diffusers.AutoencoderTiny.from_pretrained(
            source.config, use_safetensors=True, dtype=family.dtype, local_files_only=source.local
        )
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"vae.preview: {source.config} is no {_CLASS}: {error}") from error
    channels = tiny.config.latent_channels
    if channels != family.latent_channels:
        problem = f"{source.config} is for {channels} latent channels, the model has {family.latent_channels}"
        if wanted != "auto":
            raise UnsupportedModel(f"vae.preview: {problem}")
        log.warning("previews are decoded by the model's own autoencoder: %s", problem)
        return None
    log.info("previews are decoded by %s", source.config)
    return tiny.to(device).eval()


def _in_checkpoint(model: Model) -> Source | None:
    """Return the first folder of a local checkpoint that holds such an autoencoder."""
    source = locate_model(model) if Path(model.path).expanduser().exists() else None
    if source is None or not source.local:
        return None
    for file in sorted(Path(source.config).glob("*/config.json")):
        try:
            name = json.loads(file.read_bytes()).get("_class_name")
        except (OSError, ValueError, AttributeError):
            continue
        if name == _CLASS:
            return Source(str(file.parent), local=True)
    return None
