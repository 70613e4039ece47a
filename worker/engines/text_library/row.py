"""A task of a library's engine."""

from __future__ import annotations

from wire.inputs import TextInputs
from wire.text import TokenOutput
from worker.engine import TaskError, UnstreamedRow
from worker.engines.text.generation import Generation
from worker.engines.text_library.interface import LibraryOutput, LibraryRequest


class LibraryRow(UnstreamedRow):
    """One text, and the library's request for it while there is one."""

    def __init__(self, number: int, inputs: TextInputs, generation: Generation) -> None:
        """`number`: differs from that of every other row of the process."""
        self.generation = generation
        self.request: LibraryRequest | None = None
        #: It is the reason that the task has no result.
        self.failure: TaskError | None = None
        #: Tokens that the library has to compute before the next one is generated.
        self.pending = len(generation.prompt) + len(generation.tokens)
        self._number, self._inputs = number, inputs
        self._requests = 0
        self._cached_tokens = 0
        self._has_ended = generation.is_finished

    @property
    def step(self) -> int:
        return len(self.generation.tokens)

    @property
    def steps(self) -> int:
        return self.step if self._has_ended else max(self.generation.limit, self.step + 1)

    @property
    def has_ended(self) -> bool:
        """True if no token follows: the text is finished, or the task has failed."""
        return self._has_ended

    def take_tokens(self) -> TokenOutput | None:
        return self.generation.take(self._cached_tokens) if self.failure is None else None

    def start_request(self) -> LibraryRequest:
        """Return a new request that goes on after the tokens that are generated."""
        self._requests += 1
        self.request = LibraryRequest(f"{self._number}.{self._requests}", self._inputs, self.generation)
        self.pending = len(self.request.context)
        return self.request

    def end_request(self) -> str | None:
        """Forget the request and return its name."""
        request, self.request = self.request, None
        return None if request is None else request.name

    def accept(self, output: LibraryOutput) -> int:
        """Take in what the library has generated, up to the end of the text. Return the number of new tokens."""
        if self.pending and output.tokens:
            self._cached_tokens = min(output.cached_tokens, len(self.generation.prompt))
            self.pending = 0
        if output.problem:
            self._fail(TaskError("error", output.problem))
        before = self.step
        for place, token in enumerate(output.tokens):
            if self._has_ended:
                break
            try:
                self.generation.accept(token, output.logprobs[place] if output.logprobs else None)
            except Exception as error:  # of this text alone: the others of the step have their tokens
                self._fail(error if isinstance(error, TaskError) else TaskError("error", f"step failed: {error}"))
            else:
                self._has_ended = self.generation.is_finished
        return self.step - before

    def _fail(self, error: TaskError) -> None:
        self.failure, self._has_ended = error, True
