from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import text_models
from wire.inputs import Sampling, TextInputs
from wire.text import PlainPrompt, TokenLogprob, TokenOutput, TokenPrompt
from worker.engine import TaskError
from worker.engines.text.generation import Generation
from worker.engines.text.tokenization import Tokenization

CONTEXT = 4096
EOS = 2
TEXT = "The lazy 🙂 dog: 你好."


@functools.cache
def tokenization(*, byte_fallback: bool = False) -> Tokenization:
    return text_models.tokenization(byte_fallback=byte_fallback)


@functools.cache
def unigram() -> Tokenization:
    return Tokenization(text_models.unigram_tokenizer())


def ids(text: str, *, byte_fallback: bool = False) -> list[int]:
    return list(tokenization(byte_fallback=byte_fallback).tokenizer.encode(text, add_special_tokens=False))


def generation(
    done: Sequence[int] = (),
    *,
    prompt: str = "Once",
    context: int = CONTEXT,
    byte_fallback: bool = False,
    **inputs: Any,
) -> Generation:
    values = TextInputs(Sampling(0), **{"max_tokens": 1000, **inputs})
    return Generation(tokenization(byte_fallback=byte_fallback), values, PlainPrompt(prompt), done, context)


def outputs(text: Generation, tokens: Sequence[int]) -> list[TokenOutput]:
    """Feed the tokens one by one until the text is finished."""
    taken = []
    for token in tokens:
        if text.is_finished:
            break
        text.accept(token)
        output = text.take()
        assert output is not None
        taken.append(output)
    return taken


def joined(taken: Sequence[TokenOutput]) -> str:
    return "".join(output.text for output in taken)


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_texts_are_those_of_the_tokenizer(byte_fallback: bool) -> None:
    tokens = ids(TEXT, byte_fallback=byte_fallback)
    taken = outputs(generation(byte_fallback=byte_fallback), [*tokens, EOS if not byte_fallback else 3])
    assert joined(taken).strip() == TEXT
    assert [output.finish for output in taken if output.finish] == ["stop"]
    assert [output.index for output in taken] == list(range(len(taken)))


def test_a_first_space_follows_from_the_prompt() -> None:
    text = generation(prompt="The", byte_fallback=True)
    assert joined(outputs(text, ids("dog", byte_fallback=True))) == " dog"


def test_only_first_outputs_count_the_prompt() -> None:
    text = generation()
    text.accept(ids("a")[0])
    first = text.take(cached_tokens=1)
    text.accept(ids("a")[0])
    second = text.take(cached_tokens=1)
    assert first is not None
    assert second is not None
    assert (first.prompt_tokens, first.cached_tokens) == (len(text.prompt), 1)
    assert (second.prompt_tokens, second.cached_tokens) == (0, 0)
    assert text.take() is None


ENDS = [
    ("end token", [*ids("The dog"), EOS], {}, "The dog", "stop", None),
    ("end token without effect", [EOS, *ids("a")], {"ignore_eos": True, "max_tokens": 2}, "a", "length", None),
    ("stop token", ids("a.b"), {"stop_token_ids": (ids(".")[0],)}, "a", "stop", ids(".")[0]),
    ("end token as stop token", [EOS], {"ignore_eos": True, "stop_token_ids": (EOS,)}, "", "stop", EOS),
    ("special token as stop text", [*ids("a"), 1, *ids("b")], {"stop": ("<|im_start|>",)}, "a", "stop", "<|im_start|>"),
    ("stop text", ids("The lazy dog"), {"stop": ("zy d",)}, "The la", "stop", "zy d"),
    ("length", ids("abcdef"), {"max_tokens": 3}, "abc", "length", None),
    ("length within a stop text", ids("abcdef"), {"max_tokens": 3, "stop": ("cd",)}, "abc", "length", None),
    ("length within a character", ids("🙂")[:1], {"max_tokens": 1}, "\ufffd", "length", None),
    ("end within a stop text", [*ids("abc"), EOS], {"stop": ("cd",)}, "abc", "stop", None),
    ("stop text before the minimum", ids("a.b.c"), {"stop": (".",), "min_tokens": 3}, "a.b", "stop", "."),
]


@pytest.mark.parametrize(("tokens", "inputs", "text", "finish", "reason"), [each[1:] for each in ENDS])
def test_ends(tokens: list[int], inputs: dict[str, Any], text: str, finish: str, reason: str | int | None) -> None:
    taken = outputs(generation(**inputs), tokens)
    assert (joined(taken), taken[-1].finish, taken[-1].stop_reason) == (text, finish, reason)
    assert all(output.finish == "" for output in taken[:-1])


def test_a_full_context_ends_the_text() -> None:
    prompt = len(tokenization().encode(PlainPrompt("Once")))
    text = generation(context=prompt + 2)
    assert (text.limit, outputs(text, ids("abc"))[-1].finish) == (2, "length")
    with pytest.raises(TaskError, match=f"context length is {prompt} tokens.* has {prompt} tokens") as caught:
        generation(context=prompt)
    assert caught.value.kind == "context_length"


def test_nothing_that_ends_a_text_comes_before_the_minimum() -> None:
    text = generation(min_tokens=2, stop_token_ids=(7,), stop=("<|im_start|>",))
    assert set(text.forbidden) == {1, EOS, 7}
    outputs(text, ids("ab"))
    assert not text.forbidden


def test_log_probabilities_go_with_their_tokens() -> None:
    text = generation(logprobs=0)
    values = [TokenLogprob(b"a", -0.5), TokenLogprob(b"b", -1.5)]
    for token, value in zip(ids("ab"), values, strict=True):
        text.accept(token, value)
    output = text.take()
    assert output is not None
    assert (output.tokens, output.logprobs) == (ids("ab"), values)


@pytest.mark.parametrize(
    ("done", "inputs", "finish"),
    [
        ([*ids("ab"), EOS], {}, "stop"),
        (ids("abc"), {"max_tokens": 3}, "length"),
        (ids("abc"), {"context": 7}, "length"),
    ],
)
def test_a_text_that_was_finished_reports_its_end(done: list[int], inputs: dict[str, Any], finish: str) -> None:
    text = generation(done, **inputs)
    output = text.take()
    assert output is not None
    assert (output.index, output.tokens, output.text, output.finish) == (len(done), [], "", finish)
    assert text.take() is None


def test_token_prompts_are_of_the_vocabulary() -> None:
    inputs = TextInputs(Sampling(0), 10)
    with pytest.raises(TaskError, match=r"^prompt: 9999\. Tokens of this model are from 0 to 429\.$"):
        Generation(tokenization(), inputs, TokenPrompt([1, 9999]), (), CONTEXT)
    with pytest.raises(TaskError, match="the prompt has no tokens"):
        Generation(tokenization(), inputs, TokenPrompt([]), (), CONTEXT)


@pytest.mark.parametrize("place", ["stop_token_ids", "logit_bias"])
def test_tokens_of_parameters_are_of_the_vocabulary(place: str) -> None:
    """They are checked here if no worker was connected before."""

    def inputs(token: int) -> TextInputs:
        if place == "stop_token_ids":
            return TextInputs(Sampling(0), 10, stop_token_ids=(token, 3))
        return TextInputs(Sampling(0, logit_bias=((3, 1.0), (token, 1.0))), 10)

    last = tokenization().vocabulary - 1
    Generation(tokenization(), inputs(last), TokenPrompt([1]), (), CONTEXT)
    with pytest.raises(TaskError) as caught:
        Generation(tokenization(), inputs(last + 1), TokenPrompt([1]), (), CONTEXT)
    assert caught.value.message == f"{place}: {last + 1}. Tokens of this model are from 0 to {last}."
    assert (caught.value.kind, caught.value.status) == ("invalid", 400)


PIECES = st.sampled_from(
    ["a", " dog", "🙂", "你好", "é", "\n\n", "stop", "st", "<tool_call>", "\ufffd", " ", "ü.", "🚀🚀"]
)
TOKENS = st.one_of(
    st.lists(PIECES, max_size=12).map(lambda pieces: ids("".join(pieces))),
    st.lists(st.integers(0, tokenization().vocabulary - 1), max_size=24),
)


@given(TOKENS, st.data(), st.booleans())
def test_a_resumed_text_goes_on_as_undisturbed(tokens: list[int], data: st.DataObject, byte_fallback: bool) -> None:
    stops = tuple(data.draw(st.lists(st.sampled_from(["stop", "🙂", "\n\n", "好a", " d"]), max_size=2)))
    inputs: dict[str, Any] = {"stop": stops, "max_tokens": 20, "min_tokens": data.draw(st.integers(0, 3))}
    undisturbed = outputs(generation(byte_fallback=byte_fallback, **inputs), tokens)
    cut = data.draw(st.integers(0, len(undisturbed)))
    resumed = generation(tokens[:cut], byte_fallback=byte_fallback, **inputs)
    rest = outputs(resumed, tokens[cut : len(undisturbed)])
    expected = undisturbed[cut:]
    assert [(each.index, each.tokens, each.text, each.finish, each.stop_reason) for each in rest] == [
        (each.index, each.tokens, each.text, each.finish, each.stop_reason) for each in expected
    ]


@given(st.lists(st.integers(0, 150), max_size=20))
def test_words_with_spaces_before_them(tokens: list[int]) -> None:
    own = unigram()
    text = Generation(own, TextInputs(Sampling(0), 100, ignore_eos=True), PlainPrompt("The dog"), (), CONTEXT)
    tokens = [token for token in tokens if token < own.vocabulary]
    backend, context = own.tokenizer.backend_tokenizer, text.prompt
    whole = backend.decode([*context, *(token for token in tokens if token not in own.hidden_ids)])
    assert joined(outputs(text, tokens)) == whole.removeprefix(backend.decode(context))


@given(TOKENS)
def test_texts_are_those_of_all_tokens_together(tokens: list[int]) -> None:
    backend = tokenization().tokenizer.backend_tokenizer
    taken = outputs(generation(ignore_eos=True, max_tokens=max(len(tokens), 1)), tokens)
    shown = [token for token in tokens if token not in tokenization().hidden_ids]
    assert joined(taken) == backend.decode(shown, skip_special_tokens=False)
