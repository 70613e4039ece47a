"""The prompt cache: encoded batches, hits and evictions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.diffusion.families.prompt_cache import PromptCache


class Encoder:
    """Embeds a text as its length, full and pooled, and records its calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str], windows: int = 1) -> dict[str, torch.Tensor]:
        del windows
        self.calls.append(texts)
        lengths = torch.tensor([float(len(text)) for text in texts])
        return {"full": lengths.view(-1, 1, 1).expand(-1, 2, 3), "pooled": lengths.view(-1, 1).expand(-1, 4)}


def test_misses_encoded_in_one_batch() -> None:
    encode = Encoder()
    cache = PromptCache(encode, 10)
    found = cache.get(["a", "bb", "a"])
    assert {text: float(value["full"][0, 0]) for text, value in found.items()} == {"a": 1.0, "bb": 2.0}
    assert {name: value.shape for name, value in found["a"].items()} == {"full": (2, 3), "pooled": (4,)}
    cache.get(["bb", "ccc", "", "a"])
    cache.get(["ccc"])
    assert encode.calls == [["a", "bb"], ["ccc", ""]]


def test_one_by_one_encodes_and_caches_separately() -> None:
    encode = Encoder()
    cache = PromptCache(encode, 10)
    cache.get(["a", "b"])
    cache.get(["a", "b", "a"], one_by_one=True)
    cache.get(["b", "a"], one_by_one=True)
    assert encode.calls == [["a", "b"], ["a"], ["b"]]


def test_encoder_state_is_part_of_the_key() -> None:
    encode = Encoder()
    cache = PromptCache(encode, 10)
    for encoder_state in ((), ("ink",), (), ("ink",)):
        cache.get(["a"], encoder_state=encoder_state)
    assert encode.calls == [["a"], ["a"]]


def test_entry_does_not_hold_its_batch() -> None:
    found = PromptCache(Encoder(), 10).get([str(n) for n in range(50)])
    assert {value["full"].untyped_storage().nbytes() for value in found.values()} == {2 * 3 * 4}


def test_lru_entry_evicted() -> None:
    encode = Encoder()
    cache = PromptCache(encode, 2)
    for texts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        cache.get(texts)
    assert encode.calls == [["a"], ["b"], ["c"], ["b"]]


def test_call_larger_than_capacity() -> None:
    cache = PromptCache(Encoder(), 2)
    assert set(cache.get(list("abcde"))) == set("abcde")
    assert len(cache) == 2


def test_encoding_error_not_cached() -> None:
    encode = Encoder()
    attempts = []

    def sometimes(texts: list[str], windows: int) -> dict[str, torch.Tensor]:
        attempts.append(texts)
        if len(attempts) == 1:
            raise RuntimeError("out of luck")
        return encode(texts, windows)

    cache = PromptCache(sometimes, 4)
    with pytest.raises(RuntimeError, match="out of luck"):
        cache.get(["a", "b"])
    assert len(cache) == 0
    assert set(cache.get(["a", "b"])) == {"a", "b"}


calls = st.tuples(st.lists(st.text("abcdefg", max_size=2), max_size=6), st.booleans())


@given(st.integers(1, 5), st.lists(calls, max_size=12))
def test_embeddings_correct_within_capacity(capacity: int, asked: list[tuple[list[str], bool]]) -> None:
    cache = PromptCache(Encoder(), capacity)
    for texts, one_by_one in asked:
        found = cache.get(texts, one_by_one=one_by_one)
        assert set(found) == set(texts)
        assert all(float(found[text]["full"][0, 0]) == len(text) for text in texts)
        assert len(cache) <= capacity
