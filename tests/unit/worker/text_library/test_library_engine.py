"""The engine around a library that schedules its own batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.model_settings import Model
from tests.support.counting_library import CountingLibrary, next_token
from tests.support.text_models import tokenization
from wire.inputs import CallInputs, Sampling, TextInputs
from wire.text import PlainPrompt, TokenOutput, TokenPrompt, encode_prompt, pack_tokens
from worker.engine import Checkpoint, EngineRequest, Row, TaskError
from worker.engines.text_library.engine import LibraryEngine

_TOKENIZATION = tokenization()


class _Engine(LibraryEngine):
    """With a tokenizer that is not read from files."""

    def fetch(self) -> None:
        self._tokenization = _TOKENIZATION


def _engine(library: CountingLibrary) -> LibraryEngine:
    engine = _Engine(Model(engine="openvino", path="model.gguf"), library)
    engine.load()
    return engine


def _request(prompt: Sequence[int], tokens: int, done: Sequence[int] = (), **inputs: Any) -> EngineRequest:
    checkpoint = Checkpoint(len(done), [pack_tokens(done)]) if done else None
    frame = encode_prompt(TokenPrompt(list(prompt)))
    return EngineRequest(TextInputs(Sampling(0), tokens, ignore_eos=True, **inputs), [frame], checkpoint)


def _admit(engine: LibraryEngine, *requests: EngineRequest) -> list[Row]:
    rows = []
    for row in engine.admit(requests):
        assert not isinstance(row, TaskError), row
        rows.append(row)
    return rows


def _expected(prompt: Sequence[int], tokens: int) -> list[int]:
    context = list(prompt)
    for _ in range(tokens):
        context.append(next_token(context))
    return context[len(prompt) :]


def _run(engine: LibraryEngine, row: Row) -> list[TokenOutput]:
    outputs = []
    while row.step < row.steps:
        engine.step([row])
        if (output := row.take_tokens()) is not None:
            outputs.append(output)
    return outputs


def _tokens(outputs: Sequence[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def test_generates_up_to_the_limit() -> None:
    library = CountingLibrary()
    engine = _engine(library)
    [row] = _admit(engine, _request([41, 42, 43, 44], 5))
    outputs = _run(engine, row)
    assert _tokens(outputs) == _expected([41, 42, 43, 44], 5)
    assert [output.index for output in outputs] == [0, 1, 2, 3, 4]
    assert [output.finish for output in outputs] == ["", "", "", "", "length"]
    assert (outputs[0].prompt_tokens, outputs[0].cached_tokens) == (4, 3)
    assert not library.contexts


@pytest.mark.parametrize("step_tokens", [1, 3, 1000])
def test_a_moved_text_goes_on_as_it_would_have(step_tokens: int) -> None:
    engine = _engine(CountingLibrary(step_tokens=step_tokens))
    prompt, whole = [50, 51, 52], _expected([50, 51, 52], 9)
    [row] = _admit(engine, _request(prompt, 9, whole[:4]))
    assert (row.step, row.steps) == (4, 9)
    outputs = _run(engine, row)
    assert _tokens(outputs) == whole[4:]
    assert (outputs[0].index, outputs[0].prompt_tokens) == (4, 3)


@given(
    prompts=st.lists(st.lists(st.integers(40, 90), min_size=1, max_size=6), min_size=1, max_size=4),
    actions=st.lists(st.sampled_from(["all", "first", "last", "fail", "move"]), max_size=25),
    step_tokens=st.integers(1, 8),
    tokens_at_once=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_no_order_of_steps_changes_a_text(
    prompts: list[list[int]], actions: list[str], step_tokens: int, tokens_at_once: int
) -> None:
    library = CountingLibrary(step_tokens=step_tokens, tokens_at_once=tokens_at_once)
    engine, limit = _engine(library), 6
    rows = _admit(engine, *(_request(prompt, limit) for prompt in prompts))
    texts: list[list[int]] = [[] for _ in prompts]

    def step(places: Sequence[int]) -> None:
        engine.step([rows[place] for place in places])
        for place in places:
            output = rows[place].take_tokens()
            if output is not None:
                assert output.index == len(texts[place])
                texts[place] += output.tokens

    for action in [*actions, *["all"] * 400]:
        open_ = [place for place, row in enumerate(rows) if row.step < row.steps]
        if not open_:
            break
        if action == "fail":
            library.failure = RuntimeError("on demand")
            with pytest.raises(RuntimeError):
                step(open_)
        elif action == "move":
            place = open_[-1]
            engine.release(rows[place])
            [rows[place]] = _admit(engine, _request(prompts[place], limit, texts[place]))
        else:
            step({"all": open_, "first": open_[:1], "last": open_[-1:]}[action])
    assert texts == [_expected(prompt, limit) for prompt in prompts]
    for row in rows:
        engine.release(row)
    assert not library.contexts


def test_a_failed_step_is_followed_by_a_recovery() -> None:
    library = CountingLibrary()
    engine = _engine(library)
    rows = _admit(engine, _request([41], 4), _request([42], 4))
    engine.step(rows)
    library.failure = RuntimeError("on demand")
    with pytest.raises(RuntimeError):
        engine.step(rows)
    assert (library.recovered, library.contexts) == (1, {})
    assert [row.step for row in rows] == [1, 1]
    engine.step(rows[:1])
    assert [row.step for row in rows] == [2, 1]


def test_numbers_that_mean_nothing_fail_one_text() -> None:
    library = CountingLibrary()
    engine = _engine(library)
    good, bad = _admit(engine, _request([41], 4), _request([42], 4))
    engine.step([good])
    library.problem = "the model's logits are not finite"
    engine.step([bad])
    assert bad.take_tokens() is None
    assert bad.step == bad.steps
    with pytest.raises(TaskError, match="not finite"):
        engine.render(bad)
    library.problem = ""
    engine.step([good, bad])
    assert good.step == 2
    assert engine.render(good).frames == []  # type: ignore[union-attr]


def test_the_end_of_a_text_ends_its_request() -> None:
    library = CountingLibrary()
    library.answer = 77
    engine = _engine(library)
    [row] = _admit(engine, _request([41], 50, stop_token_ids=(77,)))
    [output] = _run(engine, row)
    assert (output.tokens, output.finish, output.stop_reason) == ([77], "stop", 77)
    assert not library.contexts


def test_a_text_that_had_ended_needs_no_step() -> None:
    library = CountingLibrary()
    engine = _engine(library)
    [row] = _admit(engine, _request([41], 50, [77], stop_token_ids=(77,)))
    assert row.step == row.steps
    engine.step([row])
    output = row.take_tokens()
    assert output is not None
    assert (output.index, output.tokens, output.finish) == (1, [], "stop")
    assert not library.added


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (CallInputs(()), "generates texts"),
        (TextInputs(Sampling(0, logit_bias=((1, 2.0),)), 4), "no bias here"),
    ],
)
def test_inputs_that_it_does_not_take(inputs: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        _engine(CountingLibrary()).key(EngineRequest(inputs))


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    [error] = _engine(CountingLibrary()).admit([_request([41] * 256, 5)])
    assert isinstance(error, TaskError)
    assert (error.status, "256" in error.message) == (400, True)


def test_structured_output_needs_a_library_that_has_it() -> None:
    request = _request([41, 42], 4, json_schema="{}")
    [error] = _engine(CountingLibrary()).admit([request])
    assert isinstance(error, TaskError)
    assert (error.status, "structured output" in error.message) == (400, True)
    _admit(_engine(CountingLibrary(has_grammars=True)), request)


def test_a_token_outside_its_grammar_fails_one_text() -> None:
    library = CountingLibrary(has_grammars=True)
    engine = _engine(library)
    good, bad = _admit(engine, _request([41], 4), _request([42], 4, json_schema="{}"))
    library.answer = 77
    engine.step([good, bad])
    assert (good.step, bad.step == bad.steps) == (1, True)
    with pytest.raises(TaskError, match="grammar"):
        engine.render(bad)


@pytest.mark.parametrize(
    ("sources", "state"), [([b"{"], None), ([], None), ([encode_prompt(PlainPrompt("a"))], b"\0\0\0")]
)
def test_frames_that_hold_nothing_are_told(sources: list[bytes], state: bytes | None) -> None:
    checkpoint = None if state is None else Checkpoint(1, [state])
    [error] = _engine(CountingLibrary()).admit([EngineRequest(TextInputs(Sampling(0), 4), sources, checkpoint)])
    assert isinstance(error, TaskError)
    assert "cannot be read" in error.message


def test_counts_prompts_tokens_and_recomputed_ones() -> None:
    engine = _engine(CountingLibrary())
    whole = _expected([41, 42], 6)
    rows = _admit(engine, _request([41, 42], 6, whole[:4]), _request([43, 44, 45], 2))
    while any(row.step < row.steps for row in rows):
        engine.step([row for row in rows if row.step < row.steps])
    counters = engine.text_counters()
    assert (counters.prompt_tokens, counters.generated_tokens) == (5, 4)
    assert (counters.recomputed_tokens, counters.cached_tokens, counters.blocks) == (4, 6, 64)
    assert counters.prefill_s > 0 < counters.decode_s
    assert (counters.prefill_batches.steps[:3], counters.prefill_batches.rows) == ((0, 1, 0), 2)


def test_warm_up_leaves_nothing_behind() -> None:
    library = CountingLibrary()
    engine = _engine(library)
    engine.warm_up()
    assert (library.contexts, engine.text_counters().generated_tokens) == ({}, 0)


def test_offers_what_the_library_can_run() -> None:
    engine = _engine(CountingLibrary())
    assert engine.limits().max_batch_size == 8
    info = engine.info()
    assert info.text is not None
    assert (info.unit, info.checkpoints, info.text.context_length, info.text.chat) == ("token", True, 256, True)


def test_a_plain_prompt_is_tokenized() -> None:
    engine = _engine(CountingLibrary())
    [row] = _admit(engine, EngineRequest(TextInputs(Sampling(0), 3), [encode_prompt(PlainPrompt("The fox"))]))
    assert _tokens(_run(engine, row)) == _expected(_TOKENIZATION.encode(PlainPrompt("The fox")), 3)
