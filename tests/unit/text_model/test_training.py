"""Training of the built-in text model: packed batches, and a few steps whose result every library loads."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from scripts.text_model.dataset import IGNORED, BatchGenerator, collate, example
from scripts.text_model.evaluation import ALL, TextModel, conversations, evaluate, missed, questions
from scripts.text_model.tokenizer import train_tokenizer
from scripts.text_model.training import loss_of, new_config, rate_factor, save, train


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small matrices are slower on several threads, if other tests run beside."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(seed=0, conversations=300)


def test_tokens_of_the_chat_format_have_fixed_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<think></tool_call><|im_end|>").tokens == ["<think>", "</tool_call>", "<|im_end|>"]
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>").ids == [0, 1, 2]


@pytest.mark.parametrize("text", ["What is 3 + 4?", "größer 日本 \n\t\x00", "a  b   c", "<think>\n</think>"])
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=True) == text


def test_labels_are_the_answers(tokenizer: Tokenizer) -> None:
    one = example(tokenizer, random.Random(3), 2)
    assert [label for label in one.labels if label != IGNORED] == [
        token for token, label in zip(one.tokens, one.labels, strict=True) if label != IGNORED
    ]
    assert one.labels[0] == IGNORED
    assert one.labels.count(2) == 2  # `<|im_end|>`


def test_packed_conversations_do_not_see_each_other(tokenizer: Tokenizer) -> None:
    """Each token of a packed row has the loss that it has alone in a row."""
    rng = random.Random(4)
    first, second = example(tokenizer, rng, 1), example(tokenizer, rng, 2)
    model = train(tokenizer, new_config(tokenizer, hidden=64, layers=1), 1, seed=0, batch_tokens=512)
    length = len(first.tokens) + len(second.tokens) + 5
    with torch.no_grad():
        packed = loss_of(model, collate([[first, second]], length))
        alone = loss_of(model, collate([[first], [second]], length))
    torch.testing.assert_close(packed, alone)


def test_batches_are_full_and_follow_from_the_seed(tokenizer: Tokenizer) -> None:
    first, second = BatchGenerator(tokenizer, 1, 2, 512), BatchGenerator(tokenizer, 1, 2, 512)
    for _ in range(5):
        batch = first.next_batch()
        assert torch.equal(batch.tokens, second.next_batch().tokens)
        assert batch.tokens.shape == (2, 512)
        assert (batch.tokens != 0).float().mean() > 0.7
        assert batch.positions.max() < 512


def test_rate_rises_and_falls_to_zero() -> None:
    factors = [rate_factor(step, 200) for step in range(201)]
    assert factors[0] > 0
    assert max(factors) == pytest.approx(1)
    assert factors[-1] == 0
    peak = factors.index(max(factors))
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_few_steps_make_a_model_that_can_be_evaluated(tokenizer: Tokenizer, tmp_path: Path) -> None:
    losses: list[float] = []
    config = new_config(tokenizer, hidden=64, layers=1)
    model = train(tokenizer, config, 12, 0, lambda _, loss: losses.append(loss), batch_tokens=1024)
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    save(model, tokenizer, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "model.embed_tokens.weight" in file.keys()  # noqa: SIM118 - no mapping
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    stored = TextModel(tmp_path)
    rng = random.Random(0)
    trials = [*questions(rng, 1), *conversations(rng, stored.tokenizer, 1)]
    report, wrong = evaluate(stored, trials[:3], max_tokens=4)
    assert set(report) == {ALL, *(trial.category for trial in trials[:3])}
    assert len(wrong) == 3
    assert missed(report)
