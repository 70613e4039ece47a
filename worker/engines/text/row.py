"""A text inside the engine."""

from __future__ import annotations

from wire.inputs import TextInputs
from wire.text import TokenLogprob, TokenOutput
from worker.engine import TaskError, UnstreamedRow
from worker.engines.text.generation import Generation
from worker.engines.text.sampling import Choice, SampledRow, TokenCounts
from worker.engines.text.step_planner import CachedText
from worker.engines.text.token_bytes import TokenBytes


class TextRow(UnstreamedRow):
    """The text with its tokens in the cache and its sampling."""

    def __init__(self, inputs: TextInputs, generation: Generation, counts: TokenCounts | None, age: int) -> None:
        self.inputs = inputs
        self.generation = generation
        self.cached = CachedText([*generation.prompt, *generation.tokens], age)
        #: Ends the row at its next step.
        self.failure: TaskError | None = None
        self._counts = counts

    @property
    def step(self) -> int:
        """Number of generated tokens."""
        return len(self.generation.tokens)

    @property
    def steps(self) -> int:
        """Maximum number of generated tokens while it grows; then their number."""
        return self.step if self.generation.is_finished else max(self.generation.limit, self.step + 1)

    def take_tokens(self) -> TokenOutput | None:
        return self.generation.take(min(self.cached.cached or 0, len(self.generation.prompt)))

    def sampled(self) -> SampledRow:
        """Return what decides on the next token."""
        if self._counts is not None:
            self._counts.follow(self.generation.tokens)
        inputs, generation = self.inputs, self.generation
        return SampledRow(
            inputs.sampling, self.step, generation.forbidden, generation.grammar, self._counts, inputs.logprobs
        )

    def fail(self, error: TaskError) -> None:
        """End the row with this error at its next step."""
        self.failure = error

    def accept(self, choice: Choice, token_bytes: TokenBytes) -> None:
        """Take in the next token. An error ends the row at its next step."""
        logprob = None
        if self.inputs.logprobs is not None:
            top = [(token_bytes[token], value) for token, value in choice.top]
            logprob = TokenLogprob(token_bytes[choice.token], choice.logprob, top)
        try:
            self.generation.accept(choice.token, logprob)
        except TaskError as error:
            self.fail(error)
        except Exception as error:
            self.fail(TaskError("error", f"the text cannot go on: {error}"))
        else:
            self.cached.tokens.append(choice.token)
