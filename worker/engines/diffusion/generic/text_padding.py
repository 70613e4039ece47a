"""Pads texts of different lengths with zeros and masks the padding, as pipelines do for a list of prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

#: Texts `(images, tokens, ...)` and the argument that masks them, `(images, tokens)`: nonzero for tokens that count.
TEXT_MASKS = {
    "encoder_hidden_states": ("encoder_hidden_states_mask", "encoder_attention_mask"),
    "encoder_hidden_states_2": ("encoder_attention_mask_2",),
}
#: Masks that a pipeline may leave out when all tokens count.
_OPTIONAL_MASKS = frozenset({"encoder_hidden_states_mask"})


def paddable_texts(arguments: Mapping[str, Any], parameters: Collection[str], images: int) -> dict[str, str]:
    """Return the names of texts that can be padded, with the names of their masks.

    `parameters` are those of the denoiser. `arguments` are those of one call for this number of images.
    """
    return {
        text: mask
        for text, masks in TEXT_MASKS.items()
        for mask in masks
        if mask in parameters
        and _is_text(arguments.get(text), images)
        and _is_mask(arguments.get(mask), arguments[text], mask)
    }


def need_padding(texts: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None]) -> bool:
    """Return true if the texts differ in length or only some of them have a mask."""
    return len({own.shape[1] for own in texts}) > 1 or len({own is None for own in masks}) > 1


def pad_texts(texts: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the joined texts, padded to the longest, and the joined masks. All tokens of a text without mask count."""
    dtype = next((own.dtype for own in masks if own is not None), torch.long)
    full = [
        torch.ones(own.shape[:2], dtype=dtype, device=own.device) if known is None else known.to(dtype)
        for own, known in zip(texts, masks, strict=True)
    ]
    length = max(own.shape[1] for own in texts)
    padded = [pad(own, (0,) * 2 * (own.ndim - 2) + (0, length - own.shape[1])) for own in texts]
    return torch.cat(padded), torch.cat([pad(own, (0, length - own.shape[1])) for own in full])


def _is_text(value: Any, images: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 2 and len(value) == images


def _is_mask(value: Any, text: torch.Tensor, name: str) -> bool:
    if value is None:
        return name in _OPTIONAL_MASKS
    # A mask of floats may be added to the scores of attention, where zero means that a token counts.
    return isinstance(value, torch.Tensor) and value.shape == text.shape[:2] and not value.is_floating_point()
