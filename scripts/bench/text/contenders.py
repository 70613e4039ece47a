"""The ways to generate texts that are compared. Each imports its libraries when it is loaded."""

from __future__ import annotations

import itertools
import os
import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.bench.text.driving import Contender, TokenEvent
from scripts.bench.text.served_transformers import ServedTransformers
from scripts.bench.text.workload import TokenRequest

_CONTEXT = 512
_STEP_TOKENS = 512


class MusterEngine:
    """One of Muster's engines, stepped as the worker's loop does."""

    def __init__(self, engine: str, path: str, dtype: str, slots: int, *, prefix_cache: bool = False) -> None:
        self._engine_name, self._path, self._dtype, self._slots = engine, path, dtype, slots
        self._prefix_cache = prefix_cache
        self._rows: dict[int, Any] = {}

    def load(self) -> None:
        from configs.model_settings import Model
        from worker.engines.factory import build

        text: dict[str, Any] = {"context_length": _CONTEXT, "step_tokens": _STEP_TOKENS, "kv_cache": "1GiB"}
        text |= {"prefix_cache": self._prefix_cache}
        model = Model.model_validate(
            {
                "engine": self._engine_name,
                "path": self._path,
                "dtype": self._dtype,
                "max_batch_size": self._slots,
                "text": text,
            }
        )
        self._engine = build(model, "cpu:0")
        self._engine.fetch()
        self._engine.load()
        self._engine.warm_up()

    def submit(self, request: TokenRequest) -> None:
        from wire.inputs import Sampling, TextInputs
        from wire.text import TokenPrompt, encode_prompt
        from worker.engine import EngineRequest

        inputs = TextInputs(Sampling(0, temperature=0.0), request.tokens, ignore_eos=True)
        [row] = self._engine.admit([EngineRequest(inputs, [encode_prompt(TokenPrompt(request.prompt))])])
        if isinstance(row, Exception):
            raise row
        self._rows[request.number] = row

    def step(self) -> list[TokenEvent]:
        running = list(itertools.islice(self._rows.items(), self._slots))
        self._engine.step([row for _, row in running])
        now, events = time.perf_counter(), []
        for number, row in running:
            output = row.take_tokens()
            if output is not None:
                events.append(TokenEvent(number, len(output.tokens), now))
            if row.step >= row.steps:
                self._engine.release(self._rows.pop(number))
        return events

    def describe(self) -> str:
        return self._engine.fingerprint().replace(self._path, Path(self._path).name)


class Vllm:
    """vLLM's synchronous engine, with its own sampler."""

    def __init__(self, path: str, dtype: str, slots: int) -> None:
        self._path, self._dtype, self._slots = path, dtype, slots

    def load(self) -> None:
        from configs.model_settings import Model
        from worker.engines.vllm.vllm_library import VllmLibrary

        VllmLibrary(Model(engine="vllm", path=self._path), "cpu:0")  # for its environment variables
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        torch.set_num_threads(1)
        self._engine: Any = LLMEngine.from_engine_args(
            EngineArgs(
                model=self._path,
                dtype=self._dtype,
                max_model_len=_CONTEXT,
                max_num_seqs=self._slots,
                max_num_batched_tokens=_STEP_TOKENS + self._slots,
                kv_cache_memory_bytes=1 << 30,
                enable_prefix_caching=False,
                enforce_eager=True,
                async_scheduling=False,
                skip_tokenizer_init=True,
                disable_log_stats=True,
            )
        )

    def submit(self, request: TokenRequest) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=request.tokens,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        [prompt] = self._engine.renderer.render_cmpl([TokensPrompt(prompt_token_ids=request.prompt)])
        self._engine.add_request(str(request.number), prompt, parameters)

    def step(self) -> list[TokenEvent]:
        outputs, now = self._engine.step(), time.perf_counter()
        return [TokenEvent(int(each.request_id), len(each.outputs[0].token_ids), now) for each in outputs]

    def describe(self) -> str:
        import vllm

        return f"vllm {vllm.__version__} {self._dtype}"


class OpenVino:
    """OpenVINO's pipeline for continuous batching."""

    def __init__(self, path: str, slots: int) -> None:
        self._path, self._slots = path, slots
        self._running: dict[int, Any] = {}

    def load(self) -> None:
        import openvino_genai

        self._genai: Any = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_seqs = 1, self._slots
        scheduler.max_num_batched_tokens = _STEP_TOKENS + self._slots
        options = {"INFERENCE_NUM_THREADS": 1}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(self._path, scheduler, "CPU", options)

    def submit(self, request: TokenRequest) -> None:
        import numpy as np
        import openvino

        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = request.tokens, True, False
        tokens = openvino.Tensor(np.array([request.prompt], dtype=np.int64))
        number = time.perf_counter_ns()  # differs from those of earlier loads
        self._running[request.number] = self._pipeline.add_request(number, tokens, config)

    def step(self) -> list[TokenEvent]:
        self._pipeline.step()
        now, events = time.perf_counter(), []
        for number, handle in list(self._running.items()):
            while handle.can_read():
                events += [TokenEvent(number, len(part.generated_ids), now) for part in handle.read().values()]
            if handle.get_status() != self._genai.GenerationStatus.RUNNING:
                del self._running[number]
        return events

    def describe(self) -> str:
        import importlib.metadata

        return f"openvino-genai {importlib.metadata.version('openvino-genai')}, weights of the file"


class _Transformers:
    """A model of transformers on one thread."""

    def __init__(self, path: str, dtype: str) -> None:
        self._path, self._dtype = path, dtype

    def load(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        dtype = getattr(torch, self._dtype)
        self._model: Any = AutoModelForCausalLM.from_pretrained(self._path, dtype=dtype, attn_implementation="sdpa")
        self._model.eval()

    def describe(self) -> str:
        import torch
        import transformers

        return f"transformers {transformers.__version__} torch {torch.__version__} {self._dtype}"


class Batches(_Transformers):
    """`generate` on what waits, up to `size` prompts padded to one length. A batch ends with its longest text."""

    def __init__(self, path: str, dtype: str, size: int) -> None:
        super().__init__(path, dtype)
        self._size = size
        self._waiting: list[TokenRequest] = []

    def submit(self, request: TokenRequest) -> None:
        self._waiting.append(request)

    def step(self) -> list[TokenEvent]:
        import torch

        batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
        longest = max(len(request.prompt) for request in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, longest - len(request.prompt) :] = torch.tensor(request.prompt)
            mask[row, longest - len(request.prompt) :] = 1
        streamer = _StepTimes()
        tokens = max(request.tokens for request in batch)
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[streamer],
            )
        # As if each step were sent to its clients at once, which `generate` can do for a single text only.
        return [TokenEvent(request.number, 1, at) for request in batch for at in streamer.times[: request.tokens]]


class _StepTimes:
    """A criterion that never stops: it is asked after each step, whose time it notes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        import torch

        del scores, options
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class ContinuousBatching(_Transformers):
    """The manager of transformers, whose thread steps by itself."""

    def __init__(self, path: str, dtype: str, slots: int, *, as_shipped: bool = False) -> None:
        """`as_shipped`: with its usual pages, which prompts that begin alike may share."""
        super().__init__(path, dtype)
        self._slots = slots
        self._page_tokens, self._shares = (256, True) if as_shipped else (64, False)
        self._results: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
        self._loads = itertools.count()
        self._known: dict[str, int] = {}

    def load(self) -> None:
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        super().load()
        config = ContinuousBatchingConfig(
            num_blocks=(self._slots * _CONTEXT) // self._page_tokens + 8,
            page_size=self._page_tokens,
            max_batch_tokens=_STEP_TOKENS,
            auto_switch_to_flash=False,
            max_requests_per_batch=self._slots,
            allow_block_sharing=self._shares,
        )
        usual = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        self._manager = self._model.init_continuous_batching(usual, continuous_batching_config=config)
        self._manager.start()

    def submit(self, request: TokenRequest) -> None:
        name = f"{next(self._loads)}-{request.number}"
        self._known[name] = 0
        self._manager.add_request(
            request.prompt, request_id=name, max_new_tokens=request.tokens, streaming=True, eos_token_id=-1
        )

    def step(self) -> list[TokenEvent]:
        output = self._manager.get_result(timeout=0.05)
        if output is None:
            return []
        new = len(output.generated_tokens) - self._known[output.request_id]
        self._known[output.request_id] += new
        number = int(output.request_id.partition("-")[2])
        return [TokenEvent(number, new, time.perf_counter())] if new else []


def _contenders(models: dict[str, str], dtype: str, slots: int) -> dict[str, Callable[[], Contender]]:
    folder, gguf = models["folder"], models["gguf"]
    return {
        "muster": lambda: MusterEngine("text", folder, dtype, slots),
        "muster prefix cache": lambda: MusterEngine("text", folder, dtype, slots, prefix_cache=True),
        "one at a time": lambda: Batches(folder, dtype, 1),
        "batches of 16": lambda: Batches(folder, dtype, 16),
        "batches of 32": lambda: Batches(folder, dtype, 32),
        "transformers cb": lambda: ContinuousBatching(folder, dtype, slots),
        "transformers cb as shipped": lambda: ContinuousBatching(folder, dtype, slots, as_shipped=True),
        "transformers serve": lambda: ServedTransformers(folder, dtype, slots, _CONTEXT, _STEP_TOKENS),
        "vllm": lambda: Vllm(folder, dtype, slots),
        "muster + vllm": lambda: MusterEngine("vllm", folder, dtype, slots),
        "openvino": lambda: OpenVino(gguf, slots),
        "muster + openvino": lambda: MusterEngine("openvino", gguf, "auto", slots),
    }


#: By name: the environment that each needs.
ENVIRONMENTS = {
    "muster": "own",
    "one at a time": "own",
    "batches of 16": "own",
    "batches of 32": "own",
    "transformers cb": "own",
    "transformers serve": "own",
    "vllm": "vllm",
    "muster + vllm": "vllm",
    "openvino": "openvino",
    "muster + openvino": "openvino",
}


def make_contender(name: str, models: dict[str, str], dtype: str, slots: int) -> Contender:
    os.environ["HF_HUB_OFFLINE"] = "1"
    return _contenders(models, dtype, slots)[name]()


def contender_names() -> Sequence[str]:
    return list(ENVIRONMENTS)
