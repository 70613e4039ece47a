"""A step engine around a library that schedules its own batches.

The library has a request for exactly the rows that are stepped. A row that is left out of a step, or whose step failed,
starts again from its tokens, which are its whole state.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import cast

from configs.model_settings import Model
from wire.inputs import Sampling, TextInputs
from wire.messages import EngineInfo
from wire.text import PlainPrompt, TextCounters, TextPrompt, encode_prompt
from worker.engine import BatchKey, EngineLimits, EngineRequest, Row, TaskError, TaskResult
from worker.engines.text.generation import Generation
from worker.engines.text.preparation import is_long, make_generation, prepare_generation
from worker.engines.text.tokenization import Tokenization, load_tokenization
from worker.engines.text_library.interface import LibraryOutput, TextLibrary
from worker.engines.text_library.row import LibraryRow

log = logging.getLogger(__name__)

_SAMPLE_TOKENS = 8
_SAMPLE_PROMPT = "The quick brown fox jumps over the lazy dog"


class LibraryEngine:
    """Implements `StepEngine` by a library."""

    _tokenization: Tokenization

    def __init__(self, model: Model, library: TextLibrary) -> None:
        self._model, self._library = model, library
        self._numbers = itertools.count(1)
        #: Rows with a request, by its name.
        self._requested: dict[str, LibraryRow] = {}
        self._counters = TextCounters()

    # ---- model

    def fetch(self) -> None:
        self._tokenization = load_tokenization(self._model)

    def load(self) -> None:
        if not hasattr(self, "_tokenization"):
            self.fetch()
        self._library.load(self._tokenization)

    def warm_up(self) -> None:
        """Generate a token. Raises `UnsupportedModel` if it is nonsense."""
        [row] = self.admit(self.samples())
        if isinstance(row, TaskError):
            raise row
        try:
            self.step([row])
            self._library.check()
        finally:
            self.release(row)
        self._counters = TextCounters()

    def info(self) -> EngineInfo:
        return EngineInfo(
            pipeline=self._model.engine,
            batching="library",
            modes=(),
            checkpoints=True,
            dtype=self._library.dtype,
            unit="token",
            streams=True,
            text=self._tokenization.info(self._library.context_length),
        )

    def limits(self) -> EngineLimits:
        return EngineLimits(max_batch_size=self._library.max_requests)

    def fingerprint(self) -> str:
        text = self._model.text
        return f"{self._library.fingerprint()} {self._model.path} {text.kv_cache} {text.step_tokens}"

    def memory_bytes(self) -> int:
        return self._library.memory_bytes()

    def close(self) -> None:
        self._library.close()

    # ---- tasks

    def key(self, request: EngineRequest) -> BatchKey:
        if not isinstance(request.inputs, TextInputs):
            raise TaskError("invalid", "this model generates texts")
        if problem := self._library.unsupported(request.inputs):
            raise TaskError("invalid", problem, 400)
        return None

    def samples(self) -> list[EngineRequest]:
        inputs = TextInputs(Sampling(0, temperature=0.0), _SAMPLE_TOKENS, ignore_eos=True)
        return [EngineRequest(inputs, [encode_prompt(PlainPrompt(_SAMPLE_PROMPT))])]

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        return [self._admit(task) for task in tasks]

    def _admit(self, task: EngineRequest) -> Row | TaskError:
        inputs = cast("TextInputs", task.inputs)
        try:
            generation = make_generation(task, self._generation)
        except TaskError as error:
            return error
        return LibraryRow(next(self._numbers), inputs, generation)

    def needs_preparation(self, request: EngineRequest) -> bool:
        return is_long(request)

    def prepare(self, request: EngineRequest) -> object:
        """Turn the prompt into tokens."""
        return prepare_generation(request, self._generation)

    def discard(self, prepared: object) -> None:
        """Nothing but objects in memory."""

    def _generation(self, inputs: TextInputs, prompt: TextPrompt, done: Sequence[int]) -> Generation:
        length, has_grammars = self._library.context_length, self._library.has_grammars
        return Generation(self._tokenization, inputs, prompt, done, length, has_grammars=has_grammars)

    def step(self, rows: Sequence[Row]) -> None:
        """Let the library compute one step. A row whose prompt is not computed yet gets no token."""
        own = [row for row in cast("Sequence[LibraryRow]", rows) if not row.has_ended]
        self._request(own)
        if not own:
            return
        pending, started = _pending(own), time.monotonic()
        try:
            outputs = self._library.step()
        except BaseException:
            self._abort(list(self._requested.values()))
            self._library.recover()
            raise
        seconds = time.monotonic() - started
        for output in outputs:
            self._accept(output)
        if pending:  # the library does not tell which prompts it computes: count those that it has completed
            self._count(prefill_s=seconds, prompts=max(pending - _pending(own), 1))
        else:
            self._count(decode_s=seconds)

    def _request(self, rows: Sequence[LibraryRow]) -> None:
        """Make the library's requests those of the rows."""
        wanted = set(map(id, rows))
        self._abort([row for row in self._requested.values() if id(row) not in wanted])
        for row in rows:
            if row.request is None:
                request = row.start_request()
                self._library.add(request)
                self._requested[request.name] = row

    def _accept(self, output: LibraryOutput) -> None:
        row = self._requested.get(output.name)
        if row is None:  # it was aborted within the step
            return
        if row.pending and output.tokens:
            self._count(
                prompt_tokens=len(row.generation.prompt),
                recomputed_tokens=row.step,
                cached_tokens=output.cached_tokens,
            )
        self._count(generated_tokens=row.accept(output))
        if output.is_ended:
            del self._requested[output.name]
            row.end_request()
        elif row.has_ended:
            self._abort([row])

    def _abort(self, rows: Sequence[LibraryRow]) -> None:
        names = [name for row in rows if (name := row.end_request()) is not None]
        for name in names:
            del self._requested[name]
        if names:
            self._library.abort(names)

    def _count(self, *, prefill_s: float = 0.0, decode_s: float = 0.0, prompts: int = 0, **numbers: int) -> None:
        """Add to the counters, which the client's thread reads."""
        old = self._counters
        self._counters = TextCounters(
            prompt_tokens=old.prompt_tokens + numbers.get("prompt_tokens", 0),
            cached_tokens=old.cached_tokens + numbers.get("cached_tokens", 0),
            generated_tokens=old.generated_tokens + numbers.get("generated_tokens", 0),
            recomputed_tokens=old.recomputed_tokens + numbers.get("recomputed_tokens", 0),
            prefill_s=old.prefill_s + prefill_s,
            decode_s=old.decode_s + decode_s,
            prefill_batches=old.prefill_batches.with_step(prompts),
            **self._library.usage()._asdict(),
        )

    def text_counters(self) -> TextCounters:
        return self._counters

    def synchronize(self) -> None:
        """Steps are synchronous."""

    def render(self, row: Row) -> TaskResult | Callable[[], TaskResult]:
        failure = cast("LibraryRow", row).failure
        if failure is not None:
            raise failure
        return TaskResult((), [])

    def save(self, row: Row) -> None:
        """Its tokens are its state, and the balancer has them."""

    def release(self, row: Row) -> None:
        self._abort([cast("LibraryRow", row)])


def _pending(rows: Sequence[LibraryRow]) -> int:
    """Return the number of rows whose prompts are not computed yet."""
    return sum(row.pending > 0 for row in rows)
