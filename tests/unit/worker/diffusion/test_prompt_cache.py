"""The cache of text embeddings: what is encoded, how often, and what gives way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.engines.diffusion.families.prompt_cache import PromptCache


class Encoder:
    """Embeds a text as its length, once in full and once pooled, and keeps a record of what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        self.calls.append(texts)
        lengths = torch.tensor([float(len(text)) for text in texts])
        return {"full": lengths.view(-1, 1, 1).expand(-1, 2, 3), "pooled": lengths.view(-1, 1).expand(-1, 4)}


def test_what_is_missing_is_encoded_in_one_batch_and_only_once() -> None:
    encode = Encoder()
    cache = PromptCache(encode, 10)
    found = cache.get(["a", "bb", "a"])
    assert {text: float(value["full"][0, 0]) for text, value in found.items()} == {"a": 1.0, "bb": 2.0}
    assert {name: value.shape for name, value in found["a"].items()} == {"full": (2, 3), "pooled": (4,)}
    cache.get(["bb", "ccc", "", "a"])
    cache.get(["ccc"])
    assert encode.calls == [["a", "bb"], ["ccc", ""]]


def test_one_by_one_each_text_is_encoded_by_itself_and_known_apart() -> None:
    encode = Encoder()
    cache = PromptCache(encode, 10)
    cache.get(["a", "b"])
    cache.get(["a", "b", "a"], one_by_one=True)
    cache.get(["b", "a"], one_by_one=True)
    assert encode.calls == [["a", "b"], ["a"], ["b"]]


def test_another_state_of_the_encoders_makes_another_embedding() -> None:
    encode = Encoder()
    cache = PromptCache(encode, 10)
    for encoder_state in ((), ("ink",), (), ("ink",)):
        cache.get(["a"], encoder_state=encoder_state)
    assert encode.calls == [["a"], ["a"]]


def test_an_entry_does_not_keep_its_batch_in_memory() -> None:
    found = PromptCache(Encoder(), 10).get([str(n) for n in range(50)])
    assert {value["full"].untyped_storage().nbytes() for value in found.values()} == {2 * 3 * 4}


def test_the_least_recently_used_gives_way() -> None:
    encode = Encoder()
    cache = PromptCache(encode, 2)
    for texts in (["a"], ["b"], ["a"], ["c"], ["a"], ["b"]):
        cache.get(texts)
    assert encode.calls == [["a"], ["b"], ["c"], ["b"]]


def test_a_call_may_ask_for_more_than_the_cache_holds() -> None:
    cache = PromptCache(Encoder(), 2)
    assert set(cache.get(list("abcde"))) == set("abcde")
    assert len(cache) == 2


def test_a_failure_to_encode_is_not_remembered() -> None:
    encode = Encoder()
    attempts = []

    def sometimes(texts: list[str]) -> dict[str, torch.Tensor]:
        attempts.append(texts)
        if len(attempts) == 1:
            raise RuntimeError("out of luck")
        return encode(texts)

    cache = PromptCache(sometimes, 4)
    with pytest.raises(RuntimeError, match="out of luck"):
        cache.get(["a", "b"])
    assert len(cache) == 0
    assert set(cache.get(["a", "b"])) == {"a", "b"}


calls = st.tuples(st.lists(st.text("abcdefg", max_size=2), max_size=6), st.booleans())


@given(st.integers(1, 5), st.lists(calls, max_size=12))
def test_every_text_gets_its_own_embedding_within_the_bound(capacity: int, asked: list[tuple[list[str], bool]]) -> None:
    cache = PromptCache(Encoder(), capacity)
    for texts, one_by_one in asked:
        found = cache.get(texts, one_by_one=one_by_one)
        assert set(found) == set(texts)
        assert all(float(found[text]["full"][0, 0]) == len(text) for text in texts)
        assert len(cache) <= capacity
