"""Sentence embeddings: a text in, a vector of unit length out. Similar texts have a large inner product.

A sentence is the mean of its words' vectors, in which rare words count more (Arora and others, "A simple but tough-to-
beat baseline for sentence embeddings", 2017). `make_model.py` has made the vectors.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from muster import Failed

Array = NDArray[np.float32]
_WORD = re.compile(r"[a-z]{2,}")
#: Weight of a word: this, by this plus its share of all words.
_RARE = 1e-3


class SentenceEmbeddings:
    """Texts to vectors of 64 numbers."""

    max_batch_size = 128

    def load(self, device: str) -> None:
        """Read the vectors of the words."""
        del device
        with safe_open(Path(__file__).with_name("model.safetensors"), "numpy") as file:
            words = file.metadata()["words"].split("\n")
            vectors, shares = file.get_tensor("vectors"), file.get_tensor("shares")
        self._number = {word: index for index, word in enumerate(words)}
        self._weighted = vectors.astype(np.float32) * (_RARE / (_RARE + shares))[:, None]

    def predict(self, items: list[str]) -> list[Array | Failed]:
        """Return a vector per text; an error for a text without a known word."""
        return [self._embed(text) for text in items]

    def _embed(self, text: str) -> Array | Failed:
        known = [self._number[word] for word in _WORD.findall(text.lower()) if word in self._number]
        if not known:
            return Failed("the text has no word that the model knows", status=400)
        mean: Array = self._weighted[known].mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-9)

    def example(self) -> str:
        """An input to measure the best batch with."""
        return "Return the items of a list in sorted order."
