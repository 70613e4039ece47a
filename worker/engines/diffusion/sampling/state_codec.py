"""Serialization of sampler states as one safetensors blob.

Blobs are untrusted. Reading one checks keys, shapes and dtypes exactly; no code is executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors.torch
import torch

from worker.engine import TaskError

_WORDS = "__metadata__"


def pack_state(tensors: Mapping[str, torch.Tensor], words: Mapping[str, str]) -> bytes:
    """Serialize. Waits for the device if the tensors are on one."""
    blob: bytes = safetensors.torch.save(
        {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}, dict(words)
    )
    return blob


def unpack_state(blob: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors, in main memory, and the metadata. Raises `TaskError` for an invalid blob."""
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        return tensors, header.get(_WORDS, {})
    except Exception as error:  # the parser raises many kinds of errors
        raise invalid_state(f"it cannot be read: {error}") from error


def check_tensors(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
    if tensors.keys() != expected.keys():
        raise invalid_state("its tensors differ from those of this sampler")
    for name, (shape, dtype) in expected.items():
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            raise invalid_state(
                f"'{name}' is {list(tensors[name].shape)} {tensors[name].dtype}, expected {list(shape)} {dtype}"
            )


def invalid_state(why: str) -> TaskError:
    return TaskError("error", f"the checkpoint does not fit this sampler: {why}")
