"""Checkpoint loading: safetensors only; code from a checkpoint is never run."""

from __future__ import annotations

import logging
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders.single_file_utils import SingleFileComponentError

from configs.model_settings import Model
from worker.engine import UnsupportedModel
from worker.engines.diffusion.checkpoint_source import locate, locate_model
from worker.engines.diffusion.components import missing_parts, parts_of, replaced_parts
from worker.engines.diffusion.families import FAMILIES
from worker.engines.diffusion.families.base import Family
from worker.engines.gpu_checks import computes_bfloat16

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def has_family(name: str) -> bool:
    return name in FAMILIES


def pipeline_class(model: Model) -> str:
    """Return the diffusers pipeline class of the model. Raises `UnsupportedModel`, or `OSError` for missing files."""
    if model.pipeline is not None:
        return model.pipeline
    _silence_libraries()
    name = locate_model(model).read_index().get("_class_name")
    if not isinstance(name, str):
        raise UnsupportedModel(f"{model.path} contains custom code ({name}), which is never run")
    if model.controlnet is not None and "ControlNet" not in name:
        return name.removesuffix("Pipeline") + "ControlNetPipeline"
    return name


def load_family(model: Model, device: torch.device, pipeline: Any = None) -> Family:
    """Return the checkpoint on the device. A given `pipeline` is not read again.

    Raises `UnsupportedModel`, or `OSError` for missing files.
    """
    if pipeline is None:
        pipeline = read_family_pipeline(model, device)
    family = FAMILIES[type(pipeline).__name__]
    try:
        loaded = family(to_usable_dtype(model, pipeline.to(device), device), device)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{model.path} is not supported: {error}") from error
    if model.vae.dtype != "auto":
        loaded.vae.to(DTYPES[model.vae.dtype])
    return loaded


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
    source = locate_model(model)
    cls = _class(model, name)
    dtype = dtype_of(model, device, name)
    given = _overridden_parts(model, cls, source.read_index(), dtype)
    from_file = source.weights is not None
    if from_file:
        from_file, lacking = missing_parts(source, cls, dtype)
        given |= lacking
    given |= replaced_parts(model, source, cls, dtype)
    try:
        if from_file:
            pipeline = cls.from_single_file(
                str(source.weights), config=source.config, dtype=dtype, **source.options, **given
            )
        else:
            pipeline = cls.from_pretrained(
                source.config, variant=model.variant, use_safetensors=True, dtype=dtype, **source.options, **given
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


def dtype_of(model: Model, device: torch.device, name: str) -> torch.dtype:
    """Return the configured dtype. `auto` is float32 on a CPU.

    On a GPU, `auto` is float16 for UNets and bfloat16 for transformers, whose values exceed the range of float16.
    """
    if model.dtype != "auto":
        return DTYPES[model.dtype]
    if device.type == "cpu":
        return torch.float32
    return torch.float16 if "unet" in parts_of(getattr(diffusers, name)) else torch.bfloat16


def to_usable_dtype(model: Model, pipeline: Any, device: torch.device) -> Any:
    """Return the pipeline in float32 if its bfloat16 was not asked for and the device only emulates it."""
    is_bfloat16 = any(getattr(part, "dtype", None) == torch.bfloat16 for part in vars(pipeline).values())
    if model.dtype != "auto" or not is_bfloat16 or computes_bfloat16(device):
        return pipeline
    name = torch.cuda.get_device_name(device)
    log.warning("%s has no bfloat16: float32 is used, which takes twice the memory; dtype sets another", name)
    return pipeline.to(torch.float32)


def _overridden_parts(model: Model, cls: type, index: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return the parts that replace the checkpoint's own, and None for parts to leave out."""
    parts = parts_of(cls)
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


def _silence_libraries() -> None:
    """Disable progress bars and warnings; a warning about a long prompt would log the prompt."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
