"""Drives a text engine on the CPU as the step loop does."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from configs.model_settings import Model
from configs.text_settings import TextGeneration
from tests.support.text_models import tiny_model, tokenization
from wire.inputs import Sampling, TextInputs
from wire.text import TokenOutput, TokenPrompt, encode_prompt, pack_tokens
from worker.engine import Checkpoint, EngineRequest, Row, TaskError
from worker.engines.text.engine import TextEngine

#: 2 layers of 2 heads of 16 numbers in float32: a block of 16 tokens has 8 KiB.
BLOCK_BYTES = 8192
GREEDY = Sampling(0, temperature=0.0)


def text_engine(family: str = "llama", *, blocks: int = 128, config: dict[str, Any] | None = None, **text: Any) -> Any:
    """Return a loaded engine for a tiny model. `text`: its settings."""
    settings = {"context_length": 300, "step_tokens": 40} | text
    parts = tiny_model(family, **(config or {})), tokenization()
    model = Model(engine="text", path="tiny", text=TextGeneration(kv_cache=blocks * BLOCK_BYTES, **settings))
    engine = TextEngine(model, "cpu", parts)
    engine.fetch()
    engine.load()
    engine.warm_up()
    return engine


def request(
    prompt: Sequence[int], tokens: int, sampling: Sampling = GREEDY, done: Sequence[int] = (), **inputs: Any
) -> EngineRequest:
    """Return a request for exactly so many tokens, unless `inputs` say otherwise."""
    checkpoint = Checkpoint(len(done), [pack_tokens(done)]) if done else None
    values = TextInputs(sampling, tokens, **{"ignore_eos": True} | inputs)
    return EngineRequest(values, [encode_prompt(TokenPrompt(list(prompt)))], checkpoint)


class TextDriver:
    """Rows of one engine, with all that they have reported."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.rows: dict[int, Row] = {}
        self.outputs: dict[int, list[TokenOutput]] = {}
        self.errors: dict[int, TaskError] = {}

    def admit(self, number: int, task: EngineRequest) -> None:
        [row] = self.engine.admit([task])
        assert not isinstance(row, TaskError), row
        self.rows[number], self.outputs[number] = row, []

    def step(self, numbers: Sequence[int] | None = None) -> None:
        """Step these rows, or all; a row whose step fails leaves, and the others are stepped without it."""
        self._step(list(self.rows if numbers is None else numbers))

    def _step(self, numbers: list[int]) -> None:
        try:
            self.engine.step([self.rows[number] for number in numbers])
        except TaskError as error:
            if len(numbers) == 1:
                self.errors[numbers[0]] = error
                self.release(numbers[0])
                return
            for half in (numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]):
                self._step(half)
            return
        for number in numbers:
            row = self.rows[number]
            output = row.take_tokens()
            if output is not None:
                self.outputs[number].append(output)
            if row.step >= row.steps:
                self.release(number)

    def release(self, number: int) -> None:
        self.engine.release(self.rows.pop(number))

    def run(self) -> None:
        while self.rows:
            self.step()

    def tokens(self, number: int) -> list[int]:
        return [token for output in self.outputs[number] for token in output.tokens]


def run_one(engine: Any, task: EngineRequest) -> list[int]:
    """Return the tokens of a task that runs alone."""
    driver = TextDriver(engine)
    driver.admit(0, task)
    driver.run()
    return driver.tokens(0)


@torch.inference_mode()
def generate(family: str, prompt: Sequence[int], tokens: int, **config: Any) -> list[int]:
    """Return what `generate` of transformers makes of the same model."""
    model = _plain_model(family, tuple(config.items()))
    ids = torch.tensor([list(prompt)])
    result = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
    )
    return list(result[0, len(prompt) :].tolist())


@functools.cache
def _plain_model(family: str, config: tuple[tuple[str, Any], ...]) -> Any:
    return tiny_model(family, **dict(config))
