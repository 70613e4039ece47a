"""A library whose next token follows from the context alone, so that a wrong context shows in the text."""

from __future__ import annotations

from collections.abc import Sequence

from wire.inputs import TextInputs
from wire.text import TokenLogprob
from worker.engines.text.tokenization import Tokenization
from worker.engines.text_library.interface import LibraryOutput, LibraryRequest, LibraryUsage

#: Tokens that are letters of the tests' tokenizer.
FIRST_TOKEN, TOKENS = 40, 60


def next_token(context: Sequence[int]) -> int:
    return FIRST_TOKEN + (7 * sum(context) + len(context)) % TOKENS


class CountingLibrary:
    """Implements `TextLibrary`. A step computes up to `step_tokens` tokens of contexts, oldest request first."""

    def __init__(self, *, step_tokens: int = 1000, has_grammars: bool = False, tokens_at_once: int = 1) -> None:
        self.step_tokens, self.has_grammars = step_tokens, has_grammars
        self.tokens_at_once = tokens_at_once
        #: Texts by request: the context, and the number of its tokens that are computed.
        self.contexts: dict[str, tuple[list[int], int]] = {}
        self.left: dict[str, int] = {}
        self.added: list[str] = []
        self.recovered = 0
        #: Raised by the next step.
        self.failure: BaseException | None = None
        #: Token that the model answers everything with.
        self.answer: int | None = None
        self.problem = ""
        self.context_length, self.max_requests, self.dtype = 256, 8, "float32"

    def load(self, tokenization: Tokenization) -> None:
        del tokenization

    def unsupported(self, inputs: TextInputs) -> str:
        return "no bias here" if inputs.sampling.logit_bias else ""

    def add(self, request: LibraryRequest) -> None:
        assert request.name not in self.added, "names are used once"
        self.added.append(request.name)
        self.contexts[request.name] = request.context, 0
        self.left[request.name] = request.missing_tokens

    def abort(self, names: Sequence[str]) -> None:
        for name in names:
            del self.contexts[name], self.left[name]

    def step(self) -> list[LibraryOutput]:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        budget, outputs = self.step_tokens, []
        for name, (context, computed) in list(self.contexts.items()):
            part = min(len(context) - computed, budget)
            computed, budget = computed + part, budget - part
            self.contexts[name] = context, computed
            if computed == len(context):
                outputs.append(self._generate(name, context))
        return outputs

    def _generate(self, name: str, context: list[int]) -> LibraryOutput:
        new: list[int] = []
        for _ in range(min(self.tokens_at_once, self.left[name])):
            new.append(next_token(context) if self.answer is None else self.answer)
            context.append(new[-1])
        self.contexts[name] = context, len(context) - 1
        self.left[name] -= len(new)
        is_ended = not self.left[name]
        if is_ended:
            self.abort([name])
        return LibraryOutput(name, new, [TokenLogprob(b"x", -1.0)] * len(new), 3, is_ended, self.problem)

    def recover(self) -> None:
        assert not self.contexts, "all requests are aborted first"
        self.recovered += 1

    def check(self) -> None:
        """All answers are good."""

    def fingerprint(self) -> str:
        return "counting"

    def usage(self) -> LibraryUsage:
        return LibraryUsage(64, len(self.contexts))

    def memory_bytes(self) -> int:
        return 1

    def close(self) -> None:
        self.contexts.clear()
