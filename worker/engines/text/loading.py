"""Reads a language model's weights, and fits its context and its cache into memory."""

from __future__ import annotations

import logging
from typing import Any, Literal

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from configs.model_settings import Model
from worker.engine import UnsupportedModel
from worker.engines.gpu_checks import computes_bfloat16
from worker.engines.text.admission import cache_shape, check_config, check_network
from worker.engines.text.model_files import locate_files
from worker.engines.torch_device import CONTEXT_BYTES

log = logging.getLogger(__name__)

_CPU_CACHE_BYTES = 512 << 20
#: Part of the free GPU memory that the cache takes: the rest is for what a step computes.
_GPU_CACHE_PART = 0.85
_MAX_AUTO_CONTEXT = 8192
_MIN_BLOCKS = 4


def read_model(model: Model, device: torch.device) -> Any:
    """Return the model of the checkpoint in main memory. Raises `UnsupportedModel`."""
    files = locate_files(model)
    if files.gguf is not None:
        raise UnsupportedModel(f"{model.path} is a GGUF file, which engine: text does not read; use engine: openvino")
    try:
        config = AutoConfig.from_pretrained(files.source, **files.options)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(_not_read(model.path, files.local, error)) from error
    check_config(config)
    disable_progress_bar()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            files.source,
            config=config,
            dtype=choose_dtype(model.dtype, device),
            use_safetensors=True,
            **files.options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModel(_not_read(model.path, files.local, error)) from error
    check_network(loaded)
    return loaded.eval()


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the configured precision. `auto`: half precision on a GPU, float32 on a CPU."""
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if computes_bfloat16(device) else torch.float16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def max_context(config: Any) -> int:
    """Return the longest context in which a text does not depend on the others in its batch, up to the model's own.

    Some models turn positions by other angles once any text in the batch is longer than those they were trained on.
    """
    length: int = getattr(config, "max_position_embeddings", None) or _MAX_AUTO_CONTEXT
    parameters = getattr(config, "rope_parameters", None) or {}
    each_layer = [each for each in parameters.values() if isinstance(each, dict)] or [parameters]
    for each in each_layer:
        if each.get("rope_type") in ("longrope", "dynamic"):
            original = each.get("original_max_position_embeddings")
            length = min(length, original or getattr(config, "original_max_position_embeddings", None) or length)
    return length


def cache_bytes(
    configured: int | Literal["auto"], declared: int | Literal["auto"], usable: int, device: torch.device
) -> int:
    """Return the memory for keys and values. Called when the weights are on the device.

    `declared`: GPU memory that this worker may use. `usable`: what the largest batch may need.
    """
    if configured != "auto":
        return configured
    if device.type == "cpu":
        return min(_CPU_CACHE_BYTES, usable, psutil.virtual_memory().available // 2)
    free, _ = torch.cuda.mem_get_info(device)
    if declared != "auto":
        free = min(free, declared - CONTEXT_BYTES - torch.cuda.memory_reserved(device))
    return max(int(free * _GPU_CACHE_PART), 0)


def fit_cache(model: Model, config: Any, dtype: torch.dtype, device: torch.device, rows: int) -> tuple[int, int]:
    """Return the number of blocks, and the context length. Raises `UnsupportedModel` if that does not fit.

    `rows`: the largest batch.
    """
    settings, of_model = model.text, max_context(config)
    length = min(of_model, _MAX_AUTO_CONTEXT) if settings.context_length == "auto" else settings.context_length
    if length > of_model:
        raise UnsupportedModel(f"text.context_length ({length}) exceeds that of the model, {of_model}")
    block_tokens = settings.block_tokens
    block_bytes = cache_shape(config).token_bytes(dtype) * block_tokens
    blocks_of_text = -(-length // block_tokens)
    size = cache_bytes(settings.kv_cache, model.gpu_memory, rows * blocks_of_text * block_bytes, device)
    blocks = size // block_bytes
    room = blocks * block_tokens
    if blocks < _MIN_BLOCKS or (room < length and settings.context_length != "auto"):
        needed = max(blocks_of_text, _MIN_BLOCKS) * block_bytes
        raise UnsupportedModel(
            f"text.kv_cache holds {room} tokens of this model, fewer than text.context_length ({length}): it needs "
            f"{-(-needed >> 20)}MiB"
        )
    if room < length:
        log.warning("the context is %d tokens: text.kv_cache (%d MiB) holds no more", room, size >> 20)
    return blocks, min(length, room)


def _not_read(path: str, is_local: bool, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if is_local:
        return f"{path} is not a language model that transformers can read: {reason}"
    return (
        f"{path} is no folder here, and the hub did not return it: {reason}; check the name, the network, and HF_TOKEN "
        "if the model needs an account"
    )
