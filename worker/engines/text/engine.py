"""`TextEngine`: a `StepEngine` for language models of transformers. Rows join and leave at any token.

One forward pass computes the next token of all running texts and a part of the new prompts. A token depends on its own
text, its seed and its position alone, up to rounding: a text that moves to another worker goes on as it would have.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from configs.model_settings import Model
from wire.inputs import Sampling, TextInputs
from wire.messages import EngineInfo
from wire.text import TextCounters, TextInfo, TextPrompt, TokenPrompt, encode_prompt
from worker.engine import BatchKey, EngineLimits, EngineRequest, Row, TaskError, TaskResult
from worker.engines import torch_device as devices
from worker.engines.gpu_checks import check_build, open_gpu
from worker.engines.text.admission import cache_shape, check_equality, check_network
from worker.engines.text.attention import computes_ragged
from worker.engines.text.cache import KeyValueCache, RowPart
from worker.engines.text.fused_layers import fuse_layers
from worker.engines.text.generation import Generation
from worker.engines.text.huge_pages import use_huge_pages
from worker.engines.text.loading import fit_cache, read_model
from worker.engines.text.model_pass import ModelPass
from worker.engines.text.packed_linears import pack_linears
from worker.engines.text.preparation import is_long, make_generation, prepare_generation
from worker.engines.text.row import TextRow
from worker.engines.text.sampling import Choice, TokenCounts, choose, needs_counts
from worker.engines.text.step_planner import StepPlanner, Work
from worker.engines.text.tokenization import Tokenization, load_tokenization
from worker.engines.torch_device import translate_device_errors
from worker.engines.weights import hold_weights

log = logging.getLogger(__name__)

_CPU_BATCH, _GPU_BATCH = 32, 256
#: A sample is shorter than a block, so that it is in no cache.
_SAMPLE_PROMPT, _SAMPLE_TOKENS = 6, 8


class TextEngine:
    """A language model on one device."""

    _network: Any
    _tokenization: Tokenization
    _cache: KeyValueCache
    _compute: ModelPass
    _planner: StepPlanner
    _info: TextInfo

    def __init__(self, model: Model, device: str, parts: tuple[Any, Tokenization] | None = None) -> None:
        """`device` is `cuda:N` or `cpu`, optionally with a slot number.

        Given `parts`, a model of transformers and its tokenization, are used instead of reading `model.path`.
        """
        self._model = model
        self._parts = parts
        self._device = devices.select_device(device)
        self._counters = TextCounters()
        self._ages = itertools.count()

    # ---- model

    def fetch(self) -> None:
        check_build(self._device)
        if self._parts is not None:
            self._network, self._tokenization = self._parts
            check_network(self._network)
        else:
            self._tokenization = load_tokenization(self._model)
            self._network = read_model(self._model, self._device)

    def hold_weights(self) -> None:
        log.info("%d MiB of weights are in main memory", hold_weights([self._network]) >> 20)

    @torch.inference_mode()
    def load(self) -> None:
        devices.limit_cpu_threads(self._device)
        open_gpu(self._device)
        devices.limit_memory(self._device, self._model.gpu_memory)
        if not hasattr(self, "_network"):
            self.fetch()
        with translate_device_errors(self._device, "loading the weights"):
            self._network.to(self._device)
        if self._device.type == "cpu":
            log.info("%d linear layers are packed", pack_linears(self._network))
            use_huge_pages(self._network)
        config, dtype, settings = self._network.config, self._network.dtype, self._model.text
        blocks, context_length = fit_cache(self._model, config, dtype, self._device, self._max_rows)
        with translate_device_errors(self._device, "allocating the key-value cache"):
            self._cache = KeyValueCache(cache_shape(config), blocks, settings.block_tokens, dtype, self._device)
        self._planner = StepPlanner(
            blocks, settings.block_tokens, settings.step_tokens, prefix_cache=settings.prefix_cache
        )
        self._compute = self._make_pass()
        self._info = self._tokenization.info(context_length)
        self._count(0, [])

    def _make_pass(self) -> ModelPass:
        if self._device.type == "cpu" and fuse_layers(self._network, self._cache, self._device):
            return ModelPass(self._network, self._cache, self._device, fused=True)
        is_ragged = computes_ragged(cache_shape(self._network.config), self._network.dtype, self._device)
        return ModelPass(self._network, self._cache, self._device, ragged=is_ragged)

    def warm_up(self) -> None:
        """Compare the model with transformers' own computation, then generate a text."""
        with translate_device_errors(self._device, "a first step"):
            check_equality(self._network, self._compute, self._model.text.block_tokens, self._device)
        [row] = self.admit(self.samples())
        if isinstance(row, TaskError):
            raise row
        while row.step < row.steps:
            self.step([row])
        self.release(row)

    def info(self) -> EngineInfo:
        return EngineInfo(
            pipeline=type(self._network).__name__,
            batching="step",
            modes=(),
            checkpoints=True,
            dtype=str(self._network.dtype).removeprefix("torch."),
            unit="token",
            streams=True,
            repeatable=True,
            text=self._info,
        )

    def limits(self) -> EngineLimits:
        return EngineLimits(min(self._max_rows, self._planner.blocks))

    @property
    def _max_rows(self) -> int:
        usual = _CPU_BATCH if self._device.type == "cpu" else _GPU_BATCH
        return usual if self._model.max_batch_size == "auto" else self._model.max_batch_size

    def fingerprint(self) -> str:
        revision = f", revision {self._model.revision}" if self._model.revision is not None else ""
        settings, dtype = self._model.text, self.info().dtype
        cache = f"{self._planner.blocks} blocks of {settings.block_tokens}, steps of {settings.step_tokens}"
        environment = devices.environment(self._device, "transformers")
        return f"{self._model.path}{revision}, {dtype}, {cache}, {environment}"

    def key(self, request: EngineRequest) -> BatchKey:
        if not isinstance(request.inputs, TextInputs):
            raise TaskError("invalid", "this model generates texts")
        return None

    def samples(self) -> list[EngineRequest]:
        tokens = [place % max(self._info.vocabulary, 1) for place in range(_SAMPLE_PROMPT)]
        inputs = TextInputs(Sampling(0, temperature=0.0), _SAMPLE_TOKENS, ignore_eos=True)
        return [EngineRequest(inputs, [encode_prompt(TokenPrompt(tokens))])]

    def memory_bytes(self) -> int:
        return devices.memory_bytes(self._device)

    def synchronize(self) -> None:
        devices.synchronize(self._device)

    def close(self) -> None:
        """The process ends, which frees the device."""

    def text_counters(self) -> TextCounters:
        return self._counters

    # ---- rows

    def admit(self, tasks: Sequence[EngineRequest]) -> list[Row | TaskError]:
        """Return a row for each task. Nothing is computed before its first step."""
        return [self._admit(task) for task in tasks]

    def _admit(self, task: EngineRequest) -> Row | TaskError:
        inputs = task.inputs
        assert isinstance(inputs, TextInputs)
        try:
            generation = make_generation(task, self._generation)
        except TaskError as error:
            return error
        counts = None
        if needs_counts(inputs.sampling):
            with translate_device_errors(self._device, "counting tokens"):
                counts = TokenCounts(generation.prompt, self._network.config.vocab_size, self._device)
        return TextRow(inputs, generation, counts, next(self._ages))

    def needs_preparation(self, request: EngineRequest) -> bool:
        return is_long(request)

    def prepare(self, request: EngineRequest) -> object:
        """Turn the prompt into tokens, and its schema into a grammar."""
        return prepare_generation(request, self._generation)

    def discard(self, prepared: object) -> None:
        """Nothing but objects in memory."""

    def _generation(self, inputs: TextInputs, prompt: TextPrompt, done: Sequence[int]) -> Generation:
        return Generation(self._tokenization, inputs, prompt, done, self._info.context_length)

    def step(self, rows: Sequence[Row]) -> None:
        """Compute the next token of each row, or a part of its prompt.

        A row may wait for blocks of the cache. Raises `OutOfMemory`, `DeviceLost`, or the `TaskError` of a row that
        failed in its last step.
        """
        own = [_text_row(row) for row in rows]
        for row in own:
            if row.failure is not None:
                raise row.failure
        running = {row.cached: row for row in own if not row.generation.is_finished}
        if not running:
            return
        started = time.perf_counter()
        with translate_device_errors(self._device, f"a step of {len(own)} texts"):
            works = self._planner.plan(list(running))
            if not works:
                raise TaskError("error", "the key-value cache does not hold this text")
            parts = [RowPart(work.tokens, work.start, work.text.blocks, work.completes) for work in works]
            advanced = [running[work.text] for work in works if work.completes]
            choices = choose(self._compute(parts), [row.sampled() for row in advanced])
        self._planner.commit(works)
        for row, choice in zip(advanced, choices, strict=True):
            self._accept(row, choice)
        self._count(time.perf_counter() - started, works)

    def _accept(self, row: TextRow, choice: Choice) -> None:
        if choice.is_finite:
            row.accept(choice, self._tokenization.token_bytes)
            return
        dtype = self.info().dtype
        row.fail(TaskError("error", f"no token can be chosen: the model's output is not finite in {dtype}"))
        self._cache.clear(self._planner.discard(row.cached))

    def _count(self, seconds: float, works: Sequence[Work]) -> None:
        """Add a step to the counters. Its time is shared by tokens between prompts and running texts."""
        before, planner = self._counters, self._planner
        computed = max(sum(work.size for work in works), 1)
        prefills = [work.size for work in works if work.is_prefill]
        prefill_s = seconds * sum(prefills) / computed
        self._counters = TextCounters(
            prompt_tokens=planner.started,
            cached_tokens=planner.cached,
            generated_tokens=before.generated_tokens + sum(work.completes for work in works),
            recomputed_tokens=planner.recomputed,
            prefill_s=before.prefill_s + prefill_s,
            decode_s=before.decode_s + seconds - prefill_s,
            blocks=planner.blocks,
            used_blocks=planner.manager.used,
            prefill_batches=before.prefill_batches.with_step(len(prefills)),
        )

    def render(self, row: Row) -> TaskResult:
        """Return nothing: the tokens were the result."""
        del row
        return TaskResult((), [])

    def save(self, row: Row) -> None:
        """Its tokens are its state."""

    def release(self, row: Row) -> None:
        self._planner.release(_text_row(row).cached)
        self._counters = msgspec.structs.replace(self._counters, used_blocks=self._planner.manager.used)


def _text_row(row: Row) -> TextRow:
    assert isinstance(row, TextRow)
    return row
