"""Text embeddings by text, so that a prompt or negative prompt that comes again is not encoded again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import torch

#: What the encoders make of one text, by name, without a leading dimension.
Encoded = Mapping[str, torch.Tensor]


class TextCache:
    """The least recently used texts give way. Whatever one call misses is encoded in one batch."""

    def __init__(self, encode: Callable[[list[str]], Mapping[str, torch.Tensor]], capacity: int) -> None:
        """`encode` gives embeddings by name, each `(texts, ...)`; `capacity` counts texts."""
        self._encode = encode
        self._capacity = capacity
        self._known: OrderedDict[Hashable, Encoded] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, texts: Sequence[str], *, encoders: Hashable = (), one_by_one: bool = False) -> dict[str, Encoded]:
        """What each text was encoded to.

        `encoders` names the state of the encoders, which texts are known by as well. Encoded one by one, a text's
        embedding depends on no other, down to the last bit.
        """
        wanted = list(dict.fromkeys(texts))
        keys = {text: (encoders, one_by_one, text) for text in wanted}
        found = {text: self._known[key] for text, key in keys.items() if key in self._known}
        missing = [text for text in wanted if text not in found]
        for batch in [[text] for text in missing] if one_by_one else [missing] * bool(missing):
            found |= zip(batch, _separate(self._encode(batch)), strict=True)
        for text, key in keys.items():
            self._known[key] = found[text]
            self._known.move_to_end(key)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return found


def _separate(together: Mapping[str, torch.Tensor]) -> Iterable[Encoded]:
    """The embeddings of each text, cloned: a slice would keep those of the whole batch in memory."""
    count = len(next(iter(together.values())))
    return ({name: value[n].clone() for name, value in together.items()} for n in range(count))
