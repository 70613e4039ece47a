"""A simulated language model: a step of b texts sleeps t0 + t1 * b seconds and gives each one word.

The word at a position follows from the seed and the position alone, so that a lost or repeated token shows in the text.
Configured texts in a prompt make it fail, as they do in `sim`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from configs.model_settings import Model
from wire.inputs import Sampling, TextInputs
from wire.messages import EngineInfo
from wire.text import (
    ChatPrompt,
    FinishReason,
    PlainPrompt,
    TextCounters,
    TextInfo,
    TextPrompt,
    TokenOutput,
    ToolCallFormat,
    decode_prompt,
    encode_prompt,
    unpack_tokens,
)
from worker.engine import (
    BatchKey,
    DeviceLost,
    EngineLimits,
    EngineRequest,
    OutOfMemory,
    Row,
    TaskError,
    TaskResult,
    UnstreamedRow,
    context_exceeded,
)
from worker.engines.sleeping_engine import SleepingEngine

_WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu")
_CHARS_PER_TOKEN = 4
_CONTEXT = 32_768
_SAMPLE_TOKENS = 8


@dataclass
class SimTextRow(UnstreamedRow):
    """A text: its number of tokens, and the prompt tokens that are left to compute."""

    inputs: TextInputs
    prompt: str
    prompt_tokens: int
    prompt_left: int
    step: int
    steps: int
    is_new: bool = True
    output: TokenOutput | None = None

    def take_tokens(self) -> TokenOutput | None:
        taken, self.output = self.output, None
        return taken


class SimTextEngine(SleepingEngine):
    """Implements `StepEngine` by sleeping."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._text = model.text
        self._counters = TextCounters()

    def info(self) -> EngineInfo:
        length = self._text.context_length
        info = TextInfo(
            context_length=_CONTEXT if length == "auto" else length,
            chat=True,
            tool_calls=ToolCallFormat("<tool_call>", "</tool_call>"),
            vocabulary=len(_WORDS),
        )
        return EngineInfo(
            "simulated", "sim", (), checkpoints=True, unit="token", streams=True, repeatable=True, text=info
        )

    def limits(self) -> EngineLimits:
        return EngineLimits()

    def fingerprint(self) -> str:
        return f"sim text {self._sim.t0_s} {self._sim.t1_s} {self._sim.memory_tasks}"

    def key(self, request: EngineRequest) -> BatchKey:
        if not isinstance(request.inputs, TextInputs):
            raise TaskError("invalid", "this model generates texts")
        return None

    def samples(self) -> list[EngineRequest]:
        inputs = TextInputs(Sampling(0), _SAMPLE_TOKENS)
        return [EngineRequest(inputs, [encode_prompt(PlainPrompt("sample"))])]

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        return [self._admit(task) for task in tasks]

    def _admit(self, task: EngineRequest) -> Row | TaskError:
        inputs, prompt = cast("TextInputs", task.inputs), decode_prompt(task.sources[0])
        text, tokens = _prompt(prompt)
        done = len(unpack_tokens(task.checkpoint.frames[0])) if task.checkpoint is not None else 0
        info = self.info().text
        assert info is not None
        if tokens + 1 > info.context_length:
            return context_exceeded(info.context_length, str(tokens))
        limit = min(inputs.max_tokens, info.context_length - tokens)
        return SimTextRow(inputs, text, tokens, tokens + done, done, limit)

    def step(self, rows: Sequence[Row]) -> None:
        """Sleep, then generate a word for each text whose prompt is computed."""
        sim, own = self._sim, cast("Sequence[SimTextRow]", rows)
        if sim.memory_tasks is not None and len(rows) > sim.memory_tasks:
            raise OutOfMemory(f"{len(rows)} tasks were asked for, {sim.memory_tasks} fit")
        for row in own:
            self._fail_on_demand(row.prompt)
        budget, computed, prefills = self._text.step_tokens, 0, 0
        for row in own:
            part = min(row.prompt_left, budget - computed)
            row.prompt_left, computed, prefills = row.prompt_left - part, computed + part, prefills + (part > 0)
        decode_s, prefill_s = sim.t0_s + sim.t1_s * len(rows), sim.prompt_token_s * computed
        time.sleep(decode_s + prefill_s)
        generated = [row for row in own if not row.prompt_left]
        for row in generated:
            _generate(row)
        before = self._counters
        self._counters = TextCounters(
            prompt_tokens=before.prompt_tokens + computed,
            generated_tokens=before.generated_tokens + len(generated),
            prefill_s=before.prefill_s + prefill_s,
            decode_s=before.decode_s + decode_s,
            prefill_batches=before.prefill_batches.with_step(prefills),
        )

    def _fail_on_demand(self, prompt: str) -> None:
        sim = self._sim
        if sim.crash_prompt in prompt:
            os._exit(70)
        if sim.device_prompt in prompt:
            raise DeviceLost("a lost device on demand")
        if sim.fail_prompt in prompt:
            raise RuntimeError("a failure on demand")
        while sim.stuck_prompt in prompt:
            time.sleep(60)

    def synchronize(self) -> None:
        """Steps are synchronous."""

    def render(self, row: Row) -> TaskResult:
        del row
        return TaskResult((), [])

    def save(self, row: Row) -> None:
        """Its tokens are its state."""

    def text_counters(self) -> TextCounters:
        return self._counters


def _prompt(prompt: TextPrompt) -> tuple[str, int]:
    """Return the text of a prompt and its number of tokens."""
    if isinstance(prompt, PlainPrompt):
        return prompt.text, max(len(prompt.text) // _CHARS_PER_TOKEN, 1)
    if isinstance(prompt, ChatPrompt):
        text = "\n".join(str(message.get("content", "")) for message in prompt.messages)
        return text, max(len(text) // _CHARS_PER_TOKEN, 1)
    return "", max(len(prompt.tokens), 1)


def _generate(row: SimTextRow) -> None:
    """Give the row its next word. A stop text ends the generation before the word in which it ends."""
    token = _token(row.inputs.sampling.seed, row.step)
    text = _WORDS[token] + " "
    stop = next((each for each in row.inputs.stop if each in text), None)
    index, row.step = row.step, row.step + 1
    if stop is not None:
        text, row.steps = text[: text.index(stop)], row.step
    finish: FinishReason = "stop" if stop is not None else "length" if row.step == row.steps else ""
    prompt_tokens, row.is_new = (row.prompt_tokens if row.is_new else 0), False
    row.output = TokenOutput(index, [token], text, finish, prompt_tokens=prompt_tokens, stop_reason=stop)


def _token(seed: int, position: int) -> int:
    digest = hashlib.blake2b(f"{seed} {position}".encode(), digest_size=2).digest()
    return int.from_bytes(digest, "little") % len(_WORDS)


def expected_text(seed: int, tokens: int) -> str:
    """Compute the text that a worker must generate, for tests."""
    return "".join(f"{_WORDS[_token(seed, position)]} " for position in range(tokens))
