"""The cache of text embeddings: what is encoded, how often, and what gives way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.diffusion.texts import TextCache


class Encoder:
    """Embeds a text as its length, and keeps a record of what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.calls.append(texts)
        return torch.stack([torch.full((2, 3), float(len(text))) for text in texts])


def test_what_is_missing_is_encoded_in_one_batch_and_only_once() -> None:
    encode = Encoder()
    cache = TextCache(encode, 10)
    found = cache.get(["a", "bb", "a"])
    assert {text: float(value[0, 0]) for text, value in found.items()} == {"a": 1.0, "bb": 2.0}
    assert found["a"].shape == (2, 3)
    cache.get(["bb", "ccc", "", "a"])
    cache.get(["ccc"])
    assert encode.calls == [["a", "bb"], ["ccc", ""]]


def test_an_entry_does_not_keep_its_batch_in_memory() -> None:
    found = TextCache(Encoder(), 10).get([str(n) for n in range(50)])
    assert {value.untyped_storage().nbytes() for value in found.values()} == {2 * 3 * 4}


def test_the_least_recently_used_gives_way() -> None:
    encode = Encoder()
    cache = TextCache(encode, 2)
    for texts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        cache.get(texts)
    assert encode.calls == [["a"], ["b"], ["c"], ["b"]]


def test_a_call_may_ask_for_more_than_the_cache_holds() -> None:
    cache = TextCache(Encoder(), 2)
    assert set(cache.get(list("abcde"))) == set("abcde")
    assert len(cache) == 2


def test_a_failure_to_encode_is_not_remembered() -> None:
    attempts = []

    def encode(texts: list[str]) -> torch.Tensor:
        attempts.append(texts)
        if len(attempts) == 1:
            raise RuntimeError("out of luck")
        return torch.zeros(len(texts), 2, 3)

    cache = TextCache(encode, 4)
    with pytest.raises(RuntimeError, match="out of luck"):
        cache.get(["a", "b"])
    assert len(cache) == 0
    assert set(cache.get(["a", "b"])) == {"a", "b"}


@given(st.integers(1, 5), st.lists(st.lists(st.text("abcdefg", max_size=2), max_size=6), max_size=12))
def test_every_text_gets_its_own_embedding_within_the_bound(capacity: int, calls: list[list[str]]) -> None:
    cache = TextCache(Encoder(), capacity)
    for texts in calls:
        found = cache.get(texts)
        assert set(found) == set(texts)
        assert all(float(found[text][0, 0]) == len(text) for text in texts)
        assert len(cache) <= capacity
