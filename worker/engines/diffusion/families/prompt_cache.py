"""Text embeddings by text, so that a prompt or negative prompt that comes again is not encoded again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import torch

#: What the encoders make of one text, by name, without a leading dimension.
Encoded = Mapping[str, torch.Tensor]


class PromptCache:
    """The least recently used texts give way. Whatever one call misses is encoded in one batch."""

    def __init__(self, encode: Callable[[list[str]], Mapping[str, torch.Tensor]], capacity: int) -> None:
        """`encode` gives embeddings by name, each `(texts, ...)`; `capacity` counts texts."""
        self._encode = encode
        self._capacity = capacity
        self._cache: OrderedDict[Hashable, Encoded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._cache)

    def get(
        self, texts: Sequence[str], *, encoder_state: Hashable = (), one_by_one: bool = False
    ) -> dict[str, Encoded]:
        """What each text was encoded to.

        `encoders` names the state of the encoders, which texts are known by as well. Encoded one by one, a text's
        embedding depends on no other, down to the last bit.
        """
        unique = list(dict.fromkeys(texts))
        keys = {text: (encoder_state, one_by_one, text) for text in unique}
        found = {text: self._cache[key] for text, key in keys.items() if key in self._cache}
        missing = [text for text in unique if text not in found]
        for batch in [[text] for text in missing] if one_by_one else [missing] * bool(missing):
            found |= zip(batch, _split_batch(self._encode(batch)), strict=True)
        for text, key in keys.items():
            self._cache[key] = found[text]
            self._cache.move_to_end(key)
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return found


def _split_batch(together: Mapping[str, torch.Tensor]) -> Iterable[Encoded]:
    """The embeddings of each text, cloned: a slice would keep those of the whole batch in memory."""
    count = len(next(iter(together.values())))
    return ({name: value[n].clone() for name, value in together.items()} for n in range(count))
