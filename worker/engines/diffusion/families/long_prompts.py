"""Prompts that are longer than a CLIP encoder's window: encoded piece by piece, and joined; or cut, and counted.

This is what other programs do. A prompt within the window is encoded by the pipeline itself. With guidance, both texts
of a request get as many windows as the longer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def count_windows(tokenizers: Sequence[Any], texts: Sequence[str]) -> int:
    """Return how many windows of the encoders the longest text takes."""
    windows = 1
    for tokenizer in tokenizers:
        length = _window(tokenizer)
        for text in texts:
            if len(text.encode()) > length:  # a token has at least one byte
                windows = max(windows, -(-len(_tokens(tokenizer, text)) // length))
    return windows


def count_truncated(tokenizers: Sequence[tuple[Any, int]], texts: Sequence[str]) -> int:
    """Return how many tokens at the ends of the texts no encoder reads.

    `tokenizers`: each with the number of tokens that its encoder reads. Of several, the one that reads most counts.
    """
    total = 0
    for text in texts:
        # A token has at least one byte, and an encoder adds at most two of its own.
        if tokenizers and all(len(text.encode()) + 2 > limit for _, limit in tokenizers):
            total += min(
                max(len(tokenizer(text, truncation=False, verbose=False).input_ids) - limit, 0)
                for tokenizer, limit in tokenizers
            )
    return total


def window_ids(tokenizer: Any, texts: Sequence[str], windows: int) -> torch.Tensor:
    """Return token numbers `(texts * windows, length)`: each window has its own beginning and end."""
    length = _window(tokenizer)
    rows = []
    for text in texts:
        tokens = _tokens(tokenizer, text)
        for number in range(windows):
            piece = tokens[number * length : (number + 1) * length]
            row = [tokenizer.bos_token_id, *piece, tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (length + 2 - len(row)))
    return torch.tensor(rows)


def join_windows(hidden: torch.Tensor, windows: int) -> torch.Tensor:
    """Join states of windows, `(texts * windows, length, width)`, to `(texts, windows * length, width)`."""
    return hidden.reshape(len(hidden) // windows, -1, hidden.shape[-1])


def encode_windows(encoder: Any, ids: torch.Tensor, device: torch.device) -> Any:
    """Return the encoder's output with all hidden states, as diffusers' pipelines call it."""
    mask = (ids != encoder.config.pad_token_id).to(device) if getattr(encoder.config, "use_attention_mask", 0) else None
    return encoder(ids.to(device), attention_mask=mask, output_hidden_states=True)


def _window(tokenizer: Any) -> int:
    return int(tokenizer.model_max_length) - 2


def _tokens(tokenizer: Any, text: str) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False, truncation=False).input_ids
    return tokens
