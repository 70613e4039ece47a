"""Text embeddings by text, so that a prompt or negative prompt that comes again is not encoded again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch


class TextCache:
    """The least recently used texts give way. Whatever one call misses is encoded in one batch."""

    def __init__(self, encode: Callable[[list[str]], torch.Tensor], capacity: int) -> None:
        """`encode` gives `(texts, tokens, width)`; `capacity` counts texts."""
        self._encode = encode
        self._capacity = capacity
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The embedding `(tokens, width)` of each text."""
        wanted = list(dict.fromkeys(texts))
        found = {text: self._known[text] for text in wanted if text in self._known}
        missing = [text for text in wanted if text not in found]
        if missing:
            # Cloned, because a slice would keep the embeddings of the whole batch in memory.
            found |= {text: own.clone() for text, own in zip(missing, self._encode(missing), strict=True)}
        for text in wanted:
            self._known[text] = found[text]
            self._known.move_to_end(text)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return found
