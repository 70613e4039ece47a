"""Weights in the memory of this process, in place of the pages of their files."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def hold_weights(modules: Iterable[torch.nn.Module]) -> int:
    """Copy the weights into the memory of this process; return their bytes. Tensors that were one stay one.

    Files that need no conversion are mapped: their pages are read at the first use, are dropped when memory is short,
    and change with the file.
    """
    copies: dict[tuple[object, ...], torch.Tensor] = {}
    done: set[int] = set()
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) in done:
                continue
            done.add(id(tensor))
            key = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
            if key not in copies:
                copies[key] = tensor.data.clone(memory_format=torch.preserve_format)
            tensor.data = copies[key]
    return sum(tensor.nbytes for tensor in copies.values())


def modules_of(pipeline: object) -> list[torch.nn.Module]:
    """Return the modules of a pipeline."""
    return [part for part in vars(pipeline).values() if isinstance(part, torch.nn.Module)]
