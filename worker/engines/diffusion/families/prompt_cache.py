"""`PromptCache`: an LRU cache of text embeddings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import torch
from cachetools import LRUCache

#: The embeddings of one text by name, without a batch dimension.
Encoded = Mapping[str, torch.Tensor]


class PromptCache:
    """Caches embeddings by text. The misses of one call are encoded in one batch."""

    def __init__(self, encode: Callable[[list[str], int], Mapping[str, torch.Tensor]], capacity: int) -> None:
        """`encode` returns embeddings of a number of windows by name, each `(texts, ...)`; `capacity` counts texts."""
        self._encode = encode
        self._cache: LRUCache[Hashable, Encoded] = LRUCache(capacity)

    def __len__(self) -> int:
        return len(self._cache)

    def get(
        self, texts: Sequence[str], *, encoder_state: Hashable = (), one_by_one: bool = False, windows: int = 1
    ) -> dict[str, Encoded]:
        """Return the embeddings of each text, of this many windows of the encoder.

        `encoder_state` is part of the cache key. With `one_by_one`, the bits of an embedding depend on no other text.
        """
        unique = list(dict.fromkeys(texts))
        keys = {text: (encoder_state, one_by_one, windows, text) for text in unique}
        found = {text: self._cache[key] for text, key in keys.items() if key in self._cache}
        missing = [text for text in unique if text not in found]
        for batch in [[text] for text in missing] if one_by_one else [missing] * bool(missing):
            found |= zip(batch, _split_batch(self._encode(batch, windows)), strict=True)
        for text, key in keys.items():
            self._cache[key] = found[text]
        return found


def _split_batch(together: Mapping[str, torch.Tensor]) -> Iterable[Encoded]:
    """Return the embeddings of each text, cloned: a slice would keep the full batch in memory."""
    count = len(next(iter(together.values())))
    return ({name: value[n].clone() for name, value in together.items()} for n in range(count))
