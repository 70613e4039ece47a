"""Checkpoint loading: safetensors only; code from a checkpoint is never run."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    fetch_diffusers_config,
    load_single_file_checkpoint,
)

from configs.settings import Model
from worker.engine import UnsupportedModel
from worker.engines.diffusion.families import FAMILIES
from worker.engines.diffusion.families.base import Family

BUILTIN = Path(__file__).parents[2] / "builtin"
_BUILTIN_PREFIX = "builtin:"


class Source(NamedTuple):
    """Location of a checkpoint."""

    #: Folder or hub id with model_index.json and the configuration of the parts.
    config: str
    #: True if `config` is a local folder.
    local: bool
    #: The single file with all weights; None if they are beside the configuration.
    weights: Path | None = None


def has_family(name: str) -> bool:
    return name in FAMILIES


def pipeline_class(model: Model) -> str:
    """Return the diffusers pipeline class of the model. Raises `UnsupportedModel`, or `OSError` for missing files."""
    if model.pipeline is not None:
        return model.pipeline
    _silence_libraries()
    name = _index(locate(model.path)).get("_class_name")
    if not isinstance(name, str):
        raise UnsupportedModel(f"{model.path} contains custom code ({name}), which is never run")
    if model.controlnet is not None and "ControlNet" not in name:
        return name.removesuffix("Pipeline") + "ControlNetPipeline"
    return name


def _index(source: Source) -> dict[str, Any]:
    """Return model_index.json. Raises `UnsupportedModel`, or `OSError` if the hub does not return it."""
    try:
        index: dict[str, Any] = diffusers.DiffusionPipeline.load_config(source.config, local_files_only=source.local)
    except OSError as error:
        if source.weights is None and source.local:
            raise UnsupportedModel(f"{source.config} is not a checkpoint in diffusers format: {error}") from error
        if source.weights is None:
            raise UnsupportedModel(
                f"{source.config} is no folder or file here, and the hub did not return it: {error}; check the name, "
                "the network, and HF_TOKEN if the model needs an account"
            ) from error
        raise UnsupportedModel(
            f"{source.weights} needs the configuration of {source.config}, which the hub did not return: {error}; "
            f"without a network, put that folder beside the file as {source.weights.stem}"
        ) from error
    return index


def load_family(model: Model, device: torch.device, pipeline: Any = None) -> Family:
    """Return the checkpoint on the device. A given `pipeline` is not read again.

    Raises `UnsupportedModel`, or `OSError` for missing files.
    """
    if pipeline is None:
        pipeline = read_family_pipeline(model, device)
    family = FAMILIES[type(pipeline).__name__]
    try:
        return family(pipeline.to(device), device)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{model.path} is not supported: {error}") from error


def read_family_pipeline(model: Model, device: torch.device) -> Any:
    """Read the pipeline of a supported family into main memory. Raises as `load_family` does."""
    name = pipeline_class(model)
    family = FAMILIES.get(name)
    if family is None:
        raise UnsupportedModel(f"{model.path} is a {name}; supported: {', '.join(FAMILIES)}")
    return read_pipeline(model, device, family.CLASSES[0])


def open_pipeline(model: Model, device: torch.device, name: str) -> Any:
    """Load the model as this pipeline class onto the device. Raises as `load_family` does."""
    return read_pipeline(model, device, name).to(device)


def read_pipeline(model: Model, device: torch.device, name: str) -> Any:
    """Read the model as this pipeline class into main memory, in the device's dtype. Raises as `load_family` does."""
    _silence_libraries()
    source = locate(model.path)
    cls = _class(model, name)
    dtype = dtype_of(model, device, name)
    given = _overridden_parts(model, cls, _index(source), dtype)
    try:
        if source.weights is not None:
            pipeline = cls.from_single_file(
                str(source.weights), config=source.config, local_files_only=source.local, dtype=dtype, **given
            )
        else:
            pipeline = cls.from_pretrained(
                source.config,
                local_files_only=source.local,
                variant=model.variant,
                use_safetensors=True,
                dtype=dtype,
                **given,
            )
    except (
        ValueError,
        AttributeError,
        SingleFileComponentError,
    ) as error:  # diffusers raises these for parts that do not fit
        raise UnsupportedModel(f"{model.path} cannot be loaded as a {name}: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _class(model: Model, name: str) -> Any:
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline)):
        raise UnsupportedModel(f"{model.path}: this version of diffusers has no pipeline {name}")
    return cls


def locate(path: str) -> Source:
    """Find the checkpoint. Raises `UnsupportedModel`, or `OSError` for an unreadable file."""
    if path.startswith(_BUILTIN_PREFIX):
        folder = BUILTIN / path.removeprefix(_BUILTIN_PREFIX)
        if not (folder / "model_index.json").is_file():
            there = sorted(index.parent.name for index in BUILTIN.glob("*/model_index.json"))
            raise UnsupportedModel(f"no built-in model {folder.name!r}; built in: {', '.join(there)}")
        return Source(str(folder), local=True)
    place = Path(path).expanduser()
    if place.is_dir():
        return Source(str(place), local=True)
    if place.is_file():
        return _single_file(place)
    if path.startswith(("/", ".", "~")) or place.suffix == ".safetensors":
        raise UnsupportedModel(f"no such folder or file: {path}")
    return Source(path, local=False)


def _single_file(file: Path) -> Source:
    """Use the configuration in the folder named like the file, or else that of its base model."""
    if file.suffix != ".safetensors":
        raise UnsupportedModel(f"{file} is not supported: single files must be .safetensors")
    beside = file.with_suffix("")
    if (beside / "model_index.json").is_file():
        return Source(str(beside), local=True, weights=file)
    return Source(
        fetch_diffusers_config(load_single_file_checkpoint(str(file)))["pretrained_model_name_or_path"],
        local=False,
        weights=file,
    )


def dtype_of(model: Model, device: torch.device, name: str) -> torch.dtype:
    """Return the configured dtype. `auto` is float32 on a CPU.

    On a GPU, `auto` is float16 for UNets and bfloat16 for transformers, whose values exceed the range of float16.
    """
    if model.dtype != "auto":
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[model.dtype]
    if device.type == "cpu":
        return torch.float32
    return torch.float16 if "unet" in _parts(getattr(diffusers, name)) else torch.bfloat16


def _overridden_parts(model: Model, cls: type, index: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return the parts that replace the checkpoint's own, and None for parts to leave out."""
    parts = _parts(cls)
    given: dict[str, Any] = {part: None for part in parts if index.get(part) == [None, None]}
    if "safety_checker" in parts and model.safety_checker == "off":
        given |= {"safety_checker": None, "feature_extractor": None}
    if "requires_safety_checker" in parts:
        given["requires_safety_checker"] = False
    if "image_encoder" in parts and has_family(cls.__name__):
        given["image_encoder"] = None
    if model.controlnet is not None:
        if "controlnet" not in parts:
            raise UnsupportedModel(f"{model.path}: a {cls.__name__} does not support a ControlNet")
        source = locate(model.controlnet)
        given["controlnet"] = diffusers.AutoModel.from_pretrained(
            source.config, local_files_only=source.local, use_safetensors=True, dtype=dtype
        )
    return given


def _parts(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters)


def _silence_libraries() -> None:
    """Disable progress bars and warnings; a warning about a long prompt would log the prompt."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
