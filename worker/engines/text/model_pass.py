"""The model's forward pass over all rows of a step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from worker.engines.text.attention_plan import AttentionCall, AttentionPlan, DecodeGroup, Prefill, ragged_rows
from worker.engines.text.cache import KeyValueCache, RowPart, row_blocks
from worker.engines.text.recordings import Recordings
from worker.engines.torch_device import to_device

#: Rows of up to so many blocks are computed together whatever their lengths.
_SHORT = 15
#: On a CPU, the number of tokens of a pass is rounded up to one of so many significant bits.
_SIZE_BITS = 5


class ModelPass:
    """The model's forward pass over the cache."""

    def __init__(
        self, model: Any, cache: KeyValueCache, device: torch.device, *, ragged: bool = False, fused: bool = False
    ) -> None:
        """`ragged`: attention computes all rows at once, see `computes_ragged`. `fused`: all layers are fused ones."""
        self._model, self._cache, self._device = model, cache, device
        self._is_ragged, self._is_fused = ragged, fused
        self._recordings = Recordings(model, cache, device) if device.type == "cuda" else None

    @torch.inference_mode()
    def __call__(self, parts: Sequence[RowPart]) -> torch.Tensor:
        """Return the logits after each row that is completed, in float32, of shape [rows, vocabulary]."""
        if self._recordings is not None and all(len(part.tokens) == 1 and part.completes for part in parts):
            recorded = self._recordings(parts)
            if recorded is not None:
                return recorded
        return self.observe(parts)[0]

    @torch.inference_mode()
    def observe(self, parts: Sequence[RowPart]) -> tuple[torch.Tensor, Sequence[AttentionCall]]:
        """Return these logits without a recording, and how the model's own layers attended."""
        size = self._cache.block_tokens
        several = [place for place, part in enumerate(parts) if len(part.tokens) > 1]
        single = [place for place, part in enumerate(parts) if len(part.tokens) == 1]
        single.sort(key=lambda place: parts[place].past)  # so that rows of similar lengths are beside each other
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        ends: dict[int, int] = {}
        for place in (*several, *single):
            part = parts[place]
            end = part.past + len(part.tokens)
            tokens += part.tokens
            positions += range(part.past, end)
            slots += [part.blocks[at // size] * size + at % size for at in range(part.past, end)]
            ends[place] = len(tokens)
        last = [ends[place] - 1 for place, part in enumerate(parts) if part.completes]
        kept = self._tensor(last or [0])
        padding = padding_of(len(tokens)) if self._device.type == "cpu" else 0
        tokens += tokens[-1:] * padding
        positions += positions[-1:] * padding
        places = self._cache.places(self._tensor(slots))
        if self._is_ragged:
            ragged = ragged_rows([parts[place] for place in ends], self._cache, self._device)
            plan = AttentionPlan(self._cache, places, ragged=ragged)
        else:
            prefills = [self._prefill(parts[place], ends[place]) for place in several]
            decodes = self._decode_groups([parts[place] for place in single], ends[several[-1]] if several else 0)
            last_of_layers = kept if self._is_fused else None
            plan = AttentionPlan(self._cache, places, prefills, decodes, last=last_of_layers, padding=padding)
        output = self._model(
            input_ids=self._tensor(tokens)[None],
            position_ids=self._tensor(positions)[None],
            use_cache=False,
            logits_to_keep=0 if self._is_fused else kept,
            plan=plan,
        )
        logits: torch.Tensor = output.logits[0].float()
        return (logits if last else logits[:0]), plan.calls

    def _prefill(self, part: RowPart, end: int) -> Prefill:
        return Prefill(end - len(part.tokens), end, part.past, row_blocks([part], self._cache, self._device))

    def _decode_groups(self, parts: Sequence[RowPart], start: int) -> list[DecodeGroup]:
        """Return groups in which no row has more than twice the blocks of another, but for short rows."""
        groups: list[DecodeGroup] = []
        size = self._cache.block_tokens
        for _, members in itertools.groupby(parts, key=lambda part: max(part.past // size, _SHORT).bit_length()):
            own = list(members)
            positions = self._tensor([part.past for part in own])
            blocks = row_blocks(own, self._cache, self._device)
            groups.append(DecodeGroup(start, start + len(own), blocks, positions, size))
            start += len(own)
        return groups

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return to_device(torch.tensor(values), self._device)


def padding_of(tokens: int) -> int:
    """Return how many tokens to add to those of a pass, so that there are few sizes: less than a sixteenth of them.

    oneDNN compiles a packed layer for each number of tokens. That takes up to 2 ms and half a MiB, of which it keeps a
    half for good. With texts of all lengths, builtin:tiny-text grew by 730 MiB, and now by 270 MiB. Passes of 33 to 520
    tokens take 0.84 of the time with layers 192 wide, and as long as before with 576.
    """
    return -tokens % (1 << max(tokens.bit_length() - _SIZE_BITS, 0))
