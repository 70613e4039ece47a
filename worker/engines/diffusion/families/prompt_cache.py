"""`PromptCache`: an LRU cache of text embeddings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import torch
from cachetools import LRUCache

#: The embeddings of one text by name, without a batch dimension.
Encoded = Mapping[str, torch.Tensor]


class PromptCache:
    """Caches embeddings by text. The misses of one call are encoded in one batch. Any thread may look up."""

    def __init__(self, encode: Callable[[list[str], int], Mapping[str, torch.Tensor]], capacity: int) -> None:
        """`encode` returns embeddings of a number of windows by name, each `(texts, ...)`; `capacity` counts texts."""
        self._encode = encode
        self._cache: LRUCache[Hashable, Encoded] = LRUCache(capacity)
        #: Not held while texts are encoded.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._cache)

    def find(
        self, texts: Sequence[str], *, encoder_state: Hashable = (), one_by_one: bool = False, windows: int = 1
    ) -> dict[str, Encoded]:
        """Return those of the embeddings that are in the cache. The arguments are those of `get`."""
        keys = _keys(texts, encoder_state, one_by_one, windows)
        with self._lock:
            return {text: self._cache[key] for text, key in keys.items() if key in self._cache}

    def get(
        self, texts: Sequence[str], *, encoder_state: Hashable = (), one_by_one: bool = False, windows: int = 1
    ) -> dict[str, Encoded]:
        """Return the embeddings of each text, of this many windows of the encoder.

        `encoder_state` is part of the cache key. With `one_by_one`, the bits of an embedding depend on no other text.
        """
        found = self.find(texts, encoder_state=encoder_state, one_by_one=one_by_one, windows=windows)
        keys = _keys(texts, encoder_state, one_by_one, windows)
        missing = [text for text in keys if text not in found]
        for batch in [[text] for text in missing] if one_by_one else [missing] * bool(missing):
            found |= zip(batch, _split_batch(self._encode(batch, windows)), strict=True)
        with self._lock:
            for text, key in keys.items():
                self._cache[key] = found[text]
        return found


def _keys(texts: Sequence[str], encoder_state: Hashable, one_by_one: bool, windows: int) -> dict[str, Hashable]:
    return {text: (encoder_state, one_by_one, windows, text) for text in texts}


def _split_batch(together: Mapping[str, torch.Tensor]) -> Iterable[Encoded]:
    """Return the embeddings of each text, cloned: a slice would keep the full batch in memory."""
    count = len(next(iter(together.values())))
    return ({name: value[n].clone() for name, value in together.items()} for n in range(count))
