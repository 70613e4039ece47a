"""vLLM's interface for processors of logits, over a `TokenChooser`. Imports vLLM."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from worker.engines.vllm.token_chooser import TokenChooser


def logits_processor(chooser: TokenChooser) -> type[LogitsProcessor]:
    """Return the class that vLLM makes its processor of: one for this chooser, because vLLM passes nothing of ours."""

    class ChooserProcessor(LogitsProcessor):  # type: ignore[misc]  # without vLLM, its types are unknown
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            del vllm_config, device, is_pin_memory

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: BatchUpdate | None) -> None:
            if batch_update is None:
                return
            added = [(place, parameters.extra_args["request"]) for place, parameters, *_ in batch_update.added]
            moved = [(each[0], each[1], each[2] == MoveDirectionality.SWAP) for each in batch_update.moved]
            chooser.update_batch(batch_update.removed, added, moved)

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return chooser.force_choices(logits)

    return ChooserProcessor
