"""Reads a language model's weights, and fits its context and its cache into memory."""

from __future__ import annotations

import logging
from typing import Any, Literal

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

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


def cache_bytes(configured: int | Literal["auto"], declared: int | Literal["auto"], device: torch.device) -> int:
    """Return the memory for keys and values. Called once the weights are on the device.

    `declared`: GPU memory that this worker may use.
    """
    if configured != "auto":
        return configured
    if device.type == "cpu":
        return min(_CPU_CACHE_BYTES, psutil.virtual_memory().available // 2)
    free, _ = torch.cuda.mem_get_info(device)
    if declared != "auto":
        free = min(free, declared - CONTEXT_BYTES - torch.cuda.memory_reserved(device))
    return max(int(free * _GPU_CACHE_PART), 0)


def fit_cache(model: Model, config: Any, dtype: torch.dtype, size: int) -> tuple[int, int]:
    """Return the number of blocks in `size` bytes, and the context length. Raises `UnsupportedModel`."""
    settings, of_model = model.text, getattr(config, "max_position_embeddings", None) or _MAX_AUTO_CONTEXT
    token_bytes, block_tokens = cache_shape(config).token_bytes(dtype), settings.block_tokens
    blocks = size // (token_bytes * block_tokens)
    room = blocks * block_tokens
    if settings.context_length == "auto":
        length = min(of_model, _MAX_AUTO_CONTEXT)
        if room < length:
            log.warning("the context is %d tokens: text.kv_cache (%d MiB) holds no more", room, size >> 20)
            length = room
    else:
        length = settings.context_length
        if length > of_model:
            raise UnsupportedModel(f"text.context_length ({length}) exceeds that of the model, {of_model}")
        if room < length:
            needed = -(-length // block_tokens) * block_tokens * token_bytes
            raise UnsupportedModel(
                f"text.kv_cache holds {room} tokens, fewer than text.context_length ({length}): it needs "
                f"{-(-needed >> 20)}MiB"
            )
    if blocks < 4:
        raise UnsupportedModel(f"text.kv_cache holds only {room} tokens of this model; it needs more memory")
    return blocks, length


def _not_read(path: str, is_local: bool, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if is_local:
        return f"{path} is not a language model that transformers can read: {reason}"
    return (
        f"{path} is no folder here, and the hub did not return it: {reason}; check the name, the network, and HF_TOKEN "
        "if the model needs an account"
    )
