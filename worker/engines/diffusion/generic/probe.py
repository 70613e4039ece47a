"""Probe requests for a newly loaded pipeline, and the comparison of their outputs."""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch.utils import _pytree as pytree

from configs.model_settings import Model
from wire.inputs import SOURCES, GenerationMode
from worker.engine import EngineRequest, default_inputs

#: Enough for multistep solvers.
_STEPS = 4
#: Maximum difference relative to the largest value, for rounding only.
_ROUNDING = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def probe_request(model: Model, mode: GenerationMode, number: int = 0, words: int = 1) -> EngineRequest:
    """Return a request at the model's defaults; `number` varies everything that may vary in a batch.

    `words` is the length of the prompt. A prompt of one word is a class label as well.
    """
    usual = default_inputs(model)
    inputs = msgspec.structs.replace(
        usual,
        prompt=" ".join([str(number)] * words),
        steps=min(usual.steps, _STEPS),
        seed=number,
        mode=mode,
        strength=model.defaults.strength,
    )
    pixels = inputs.width * inputs.height
    level = bytes([(90 + 60 * number) % 256])
    return EngineRequest(inputs, [level * (pixels * 3), b"\xff" * pixels][: SOURCES[mode]])


def outputs_match(one: Any, other: Any) -> bool:
    ones, spec = pytree.tree_flatten(one)
    others, other_spec = pytree.tree_flatten(other)
    return spec == other_spec and all(map(_outputs_match, ones, others))


def _outputs_match(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor):
        return bool(one == other)
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    bound = _ROUNDING.get(one.dtype, 0.0) * float(one.abs().max())
    return bool((one - other).abs().max() <= bound)
