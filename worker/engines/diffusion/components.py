"""Parts of a pipeline that come from elsewhere than its checkpoint: replacements, and parts that a file lacks."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import safe_open

from configs.model_settings import Model
from worker.engine import UnsupportedModel
from worker.engines.diffusion.checkpoint_source import Source, locate

#: Beginnings of the names of weights in a single file, by part.
_VAE_WEIGHTS = ("first_stage_model.", "vae.")
_TEXT_WEIGHTS = ("cond_stage_model.", "conditioner.", "text_encoders.", "text_encoder")
_DENOISERS = ("unet", "transformer")


def parts_of(pipeline: type) -> frozenset[str]:
    """Return the names of the pipeline's parts."""
    return frozenset(inspect.signature(pipeline).parameters)


def replaced_parts(model: Model, source: Source, pipeline: type, dtype: torch.dtype) -> dict[str, Any]:
    """Load the parts that the configuration replaces. Raises `UnsupportedModel` for a part that is none."""
    own = parts_of(pipeline)
    for name in model.replaced_parts:
        if name not in own:
            there = sorted(own.intersection(("vae", *_DENOISERS, "text_encoder", "text_encoder_2", "text_encoder_3")))
            raise UnsupportedModel(f"{name}: a {pipeline.__name__} has no such part; it has {', '.join(there)}")
    index = source.read_index() if model.replaced_parts else {}
    return {name: _part(name, path, source, index, dtype) for name, path in model.replaced_parts.items()}


def missing_parts(source: Source, pipeline: type, dtype: torch.dtype) -> tuple[bool, dict[str, Any]]:
    """Return whether the single file has text encoders, and the parts to load beside it otherwise.

    With text encoders, `from_single_file` reads the file. Without, `from_pretrained` reads the base; the parts that
    the file holds are given to it.
    """
    assert source.weights is not None
    with safe_open(source.weights, "pt") as opened:
        names = list(opened.keys())
    has_vae = any(name.startswith(_VAE_WEIGHTS) for name in names)
    has_texts = any(name.startswith(_TEXT_WEIGHTS) for name in names)
    if has_vae and has_texts:
        return True, {}
    index = source.read_index()
    if has_texts:
        return True, {"vae": _loaded("vae", source, "vae", index, dtype)}
    inside = [*(name for name in _DENOISERS if name in parts_of(pipeline)), *(["vae"] if has_vae else [])]
    return False, {name: _from_file(name, source.weights, source, index, dtype) for name in inside}


def _part(name: str, path: str, source: Source, index: dict[str, Any], dtype: torch.dtype) -> Any:
    file = Path(path).expanduser()
    if not file.is_file():
        place = locate(path)
        return _loaded(name, place, _subfolder(name, place), index, dtype)
    if file.suffix != ".safetensors":
        raise UnsupportedModel(f"{name}: {file} is not supported: single files must be .safetensors")
    if name.startswith("text_encoder"):
        raise UnsupportedModel(f"{name}: {file} is a file, but a text encoder must be a folder or a hub id")
    return _from_file(name, file, source, index, dtype)


def _subfolder(name: str, place: Source) -> str | None:
    """Return the folder of the part: its own, or that in the folder of a complete pipeline."""
    if place.local:
        inside = not (Path(place.config) / "config.json").is_file()
    else:
        try:
            diffusers.DiffusionPipeline.load_config(place.config, **place.options)
            inside = True
        except OSError:  # it is no pipeline
            inside = False
    return name if inside else None


def _loaded(name: str, place: Source, subfolder: str | None, index: dict[str, Any], dtype: torch.dtype) -> Any:
    """Load the part from a folder or from the hub. Raises `UnsupportedModel`."""
    cls = _class(name, index)
    loader = cls if issubclass(cls, transformers.PreTrainedModel) else diffusers.AutoModel
    inside = {"subfolder": subfolder} if subfolder else {}
    try:
        return loader.from_pretrained(place.config, use_safetensors=True, dtype=dtype, **place.options, **inside)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise UnsupportedModel(f"{name}: {place.config} cannot be loaded: {error}") from error


def _from_file(name: str, file: Path, source: Source, index: dict[str, Any], dtype: torch.dtype) -> Any:
    """Load the part from a single file, with the configuration of the base. Raises `UnsupportedModel`."""
    cls = _class(name, index)
    if not hasattr(cls, "from_single_file"):
        raise UnsupportedModel(f"{name}: a {cls.__name__} cannot be loaded from a single file, such as {file}")
    try:
        return cls.from_single_file(
            str(file), config=source.config, subfolder=name, local_files_only=source.local, dtype=dtype
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise UnsupportedModel(
            f"{file} does not fit the configuration of {source.config}/{name}: {type(error).__name__}: {error}"
        ) from error


def _class(name: str, index: dict[str, Any]) -> Any:
    """Return the class of the part, as the pipeline's index names it."""
    library, cls = (index.get(name) or [None, None])[:2]
    found = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), str(cls), None)
    if not isinstance(found, type):
        raise UnsupportedModel(f"{name}: the checkpoint names no class for it")
    return found
