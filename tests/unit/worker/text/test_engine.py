"""The text engine: every text is as if it ran alone, whatever runs beside it."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from tests.support.text_engine import GREEDY, TextDriver, generate, request, run_one, text_engine
from wire.inputs import CallInputs, Sampling
from worker.engine import EngineRequest, TaskError

_FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": 12}),
    ("gemma2", {"attn_logit_softcapping": None, "sliding_window": 20}),
]
_SAMPLINGS = (
    GREEDY,
    Sampling(3, temperature=0.8),
    Sampling(4, temperature=1.3, top_k=20, repetition_penalty=1.2),
    Sampling(5, temperature=1.0, top_p=0.9, min_p=0.01, presence_penalty=0.5, frequency_penalty=0.3),
    Sampling(6, temperature=0.9, logit_bias=((50, 4.0), (60, -100.0))),
)


def prompts(number: int, *, seed: int = 1, longest: int = 90) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(10, 400) for _ in range(source.randrange(1, longest))] for _ in range(number)]


@pytest.mark.parametrize(("family", "config"), _FAMILIES, ids=[family for family, _ in _FAMILIES])
def test_ragged_rows_equal_generate(family: str, config: dict[str, Any]) -> None:
    """32 texts that join at random steps, with prompts that are computed in parts."""
    source, driver = random.Random(2), TextDriver(text_engine(family, config=config))
    waiting = [(number, prompt, source.randrange(1, 30)) for number, prompt in enumerate(prompts(32))]
    expected = {number: generate(family, prompt, tokens, **config) for number, prompt, tokens in waiting}
    while waiting or driver.rows:
        for number, prompt, tokens in waiting[: source.randrange(4)]:
            driver.admit(number, request(prompt, tokens))
        waiting = [each for each in waiting if each[0] not in driver.outputs]
        driver.step()
    assert {number: driver.tokens(number) for number in expected} == expected


def test_sampled_rows_equal_themselves_alone() -> None:
    engine = text_engine()
    tasks = [request(prompt, 20, sampling) for prompt, sampling in zip(prompts(15), _SAMPLINGS * 3, strict=True)]
    driver = TextDriver(engine)
    for number, task in enumerate(tasks):
        driver.admit(number, task)
    driver.run()
    together = [driver.tokens(number) for number in range(len(tasks))]
    assert together == [run_one(engine, task) for task in tasks]
    assert len({tuple(tokens) for tokens in together}) == len(tasks)


@pytest.mark.parametrize("sampling", _SAMPLINGS[:4])
def test_text_resumes_at_any_token(sampling: Sampling) -> None:
    engine, [prompt] = text_engine(), prompts(1, seed=7)
    whole = run_one(engine, request(prompt, 18, sampling))
    for at in range(1, 18):
        rest = run_one(engine, request(prompt, 18, sampling, done=whole[:at]))
        assert [*whole[:at], *rest] == whole, at


def test_first_output_counts_prompt_and_index() -> None:
    driver, [prompt] = TextDriver(text_engine()), prompts(1, seed=3)
    driver.admit(0, request(prompt, 5, done=[20, 21]))
    driver.run()
    assert [output.index for output in driver.outputs[0]] == [2, 3, 4]
    assert [output.prompt_tokens for output in driver.outputs[0]] == [len(prompt), 0, 0]
    assert driver.outputs[0][-1].finish == "length"


def test_rows_go_on_after_they_lost_their_blocks() -> None:
    """Six texts of up to 130 tokens in blocks for 320: the youngest are computed again, and nothing changes."""
    engine = text_engine(blocks=20, prefix_cache=False)
    tasks = [
        request(prompt, 60, sampling)
        for prompt, sampling in zip(prompts(6, longest=70), itertools.cycle(_SAMPLINGS), strict=False)
    ]
    driver = TextDriver(engine)
    for number, task in enumerate(tasks):
        driver.admit(number, task)
    driver.run()
    assert engine.text_counters().recomputed_tokens > 0
    roomy = text_engine()
    assert [driver.tokens(number) for number in range(6)] == [run_one(roomy, task) for task in tasks]


def test_prompts_that_begin_alike_share_their_blocks() -> None:
    engine, [prompt] = text_engine(), prompts(1, seed=9, longest=10)
    common = [*range(100, 180), *prompt]
    driver = TextDriver(engine)
    for number in range(3):
        driver.admit(number, request([*common, 200 + number], 6))
    driver.run()
    cached = [driver.outputs[number][0].cached_tokens for number in range(3)]
    assert cached == [0, 80, 80], "the others wait for the first"
    for number in range(3):
        assert driver.tokens(number) == generate("llama", [*common, 200 + number], 6)
    driver.admit(3, request([*common, 201], 6))
    driver.run()
    assert driver.outputs[3][0].cached_tokens == 80
    assert driver.tokens(3) == driver.tokens(1)
    counters = engine.text_counters()
    assert counters.cached_tokens == 240
    assert counters.used_blocks == 0


def test_equal_prompts_with_own_seeds_are_computed_together() -> None:
    """The choices of one request: all but the last block of their prompt is computed by one of them."""
    engine, prompt = text_engine(), list(range(50, 115))
    driver = TextDriver(engine)
    for number in range(4):
        driver.admit(number, request(prompt, 8, Sampling(number, temperature=1.0)))
    driver.run()
    assert [driver.outputs[number][0].cached_tokens for number in range(4)] == [0, 64, 64, 64]
    other = text_engine(prefix_cache=False)
    for number in range(4):
        assert driver.tokens(number) == run_one(other, request(prompt, 8, Sampling(number, temperature=1.0)))


def test_no_blocks_are_shared_without_the_prefix_cache() -> None:
    engine = text_engine(prefix_cache=False)
    for _ in range(2):
        run_one(engine, request(range(60, 130), 4))
    assert engine.text_counters().cached_tokens == 0


def test_long_prompt_does_not_stop_running_texts() -> None:
    engine = text_engine(step_tokens=16)
    driver = TextDriver(engine)
    driver.admit(0, request(range(30, 40), 40))
    driver.step()
    driver.admit(1, request([20 + place % 300 for place in range(200)], 3))
    for _ in range(10):
        driver.step()
    assert len(driver.tokens(0)) == 11, "a token in every step"
    assert driver.tokens(1) == []
    driver.run()
    assert driver.tokens(1) == generate("llama", [20 + place % 300 for place in range(200)], 3)


def test_released_row_frees_its_blocks() -> None:
    engine = text_engine()
    driver = TextDriver(engine)
    for number, prompt in enumerate(prompts(3, seed=5)):
        driver.admit(number, request(prompt, 30))
    driver.step()
    assert engine.text_counters().used_blocks > 0
    for number in range(3):
        driver.release(number)
    assert engine.text_counters().used_blocks == 0


def test_row_with_infinite_logits_fails_alone() -> None:
    """A token whose embedding is not finite makes its own text fail, and none that uses its blocks later."""
    engine = text_engine(blocks=24)
    with torch.inference_mode():
        engine._network.get_input_embeddings().weight[42] = float("nan")
    driver = TextDriver(engine)
    good = prompts(3, seed=6, longest=40)
    good = [[token + (token == 42) for token in prompt] for prompt in good]
    for number, prompt in enumerate(good):
        driver.admit(number, request(prompt, 12))
    driver.admit(3, request([10, 42, *range(100, 150)], 12))
    driver.run()
    assert [driver.tokens(number) for number in range(3)] == [generate("llama", prompt, 12) for prompt in good]
    assert "not finite" in driver.errors[3].message
    for seed in range(4):  # all blocks are used again
        for number, prompt in enumerate(prompts(5, seed=20 + seed)):
            never_42 = Sampling(0, temperature=0.0, logit_bias=((42, -1000.0),))
            driver.admit(number, request([token + (token == 42) for token in prompt], 6, never_42))
        driver.run()
    assert list(driver.errors) == [3]


def test_counters_of_a_run() -> None:
    engine = text_engine()
    before = engine.text_counters()
    run_one(engine, request(range(30, 60), 10))
    after = engine.text_counters()
    assert after.prompt_tokens - before.prompt_tokens == 30
    assert after.generated_tokens - before.generated_tokens == 10
    assert after.prefill_s > before.prefill_s
    assert after.decode_s > before.decode_s
    assert after.blocks == 128


def test_prompts_of_a_step_are_counted_together() -> None:
    engine = text_engine()
    before, driver = engine.text_counters().prefill_batches, TextDriver(engine)
    for number, prompt in enumerate(([10, 11], [12, 13, 14], [15, 16, 17, 18])):
        driver.admit(number, request(prompt, 4))
    driver.run()
    after = engine.text_counters().prefill_batches
    assert (sum(after.steps) - sum(before.steps), after.rows - before.rows) == (1, 3)


def test_logprobs_are_of_the_model_itself() -> None:
    engine, prompt = text_engine(), list(range(30, 60))
    driver = TextDriver(engine)
    driver.admit(0, request(prompt, 4, Sampling(1, temperature=0.7, top_k=5), logprobs=3))
    driver.admit(1, request(prompt, 4))
    driver.run()
    tokens, reported = driver.tokens(0), [each for output in driver.outputs[0] for each in output.logprobs]
    engine._network.set_attn_implementation("sdpa")
    with torch.inference_mode():
        logits = engine._network(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.float().log_softmax(-1)
    for place, (token, each) in enumerate(zip(tokens, reported, strict=True)):
        assert each.logprob == pytest.approx(float(expected[place, token]), abs=1e-3)
        assert [value for _, value in each.top] == pytest.approx(expected[place].topk(3).values.tolist(), abs=1e-3)
    assert all(not output.logprobs for output in driver.outputs[1])


def test_minimum_length_forbids_the_end() -> None:
    engine, [prompt] = text_engine(), prompts(1, seed=4)
    biased = Sampling(0, temperature=0.0, logit_bias=((2, 100.0),))
    assert run_one(engine, request(prompt, 12, biased, ignore_eos=False)) == [2]
    tokens = run_one(engine, request(prompt, 12, biased, ignore_eos=False, min_tokens=5))
    assert tokens.index(2) == 5


@pytest.mark.parametrize(
    ("task", "kind", "expected"),
    [
        (request([], 3), "invalid", "no tokens"),
        (request([9999], 3), "invalid", "Tokens of this model"),
        (request([20] * 300, 3), "context_length", "context"),
        (EngineRequest(request([20], 3).inputs, [b"{"]), "invalid", "cannot be read"),
    ],
)
def test_bad_requests_get_an_error(task: EngineRequest, kind: str, expected: str) -> None:
    engine = text_engine()
    [row, other] = engine.admit([task, request([20], 2)])
    assert isinstance(row, TaskError)
    assert row.kind == kind
    assert expected in row.message
    assert not isinstance(other, TaskError)


def test_only_texts_are_taken() -> None:
    with pytest.raises(TaskError, match="texts"):
        text_engine().key(EngineRequest(CallInputs(())))
