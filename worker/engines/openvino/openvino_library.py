"""OpenVINO's pipeline for continuous batching."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from configs.model_settings import Model
from wire.inputs import TextInputs
from wire.text import TokenLogprob
from worker.engine import UnsupportedModel
from worker.engines.openvino.sampling import generation_options, unsupported_inputs
from worker.engines.text.model_files import locate_files
from worker.engines.text.tokenization import Tokenization
from worker.engines.text_library.interface import LibraryOutput, LibraryRequest, LibraryUsage

if TYPE_CHECKING:
    from openvino_genai import ContinuousBatchingPipeline

_GGUF = "a GGUF file needs {packages} in the environment of the worker, {python}: pip install {packages}"
#: `text.context_length: auto`.
_MAX_CONTEXT = 8192
#: Its cache has full gibibytes.
_GIB = 1 << 30
_MAX_REQUESTS = 64
_PRECISIONS = {
    # Its usual precisions make a text depend on the others in its batch.
    "float32": {
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    },
    "float16": {"INFERENCE_PRECISION_HINT": "f16"},
    "bfloat16": {"INFERENCE_PRECISION_HINT": "bf16"},
}


class OpenVinoLibrary:
    """Implements `TextLibrary`."""

    _pipeline: ContinuousBatchingPipeline
    _tokenization: Tokenization

    def __init__(self, model: Model, device: str) -> None:
        """Raises `UnsupportedModel` for a device or a path that OpenVINO does not take."""
        if device.startswith("cuda"):
            raise UnsupportedModel("OpenVINO does not run on NVIDIA GPUs: use engine text or vllm, or CPU devices")
        import openvino_genai

        self._genai: Any = openvino_genai
        self._model, self._files = model, locate_files(model)
        if not self._files.local:
            raise UnsupportedModel(f"{model.path}: OpenVINO loads a GGUF file, or a folder in OpenVINO's format")
        needed = [name for name in ("gguf", "torch") if importlib.util.find_spec(name) is None]
        if self._files.gguf is not None and needed:
            raise UnsupportedModel(_GGUF.format(packages=" ".join(needed), python=sys.executable))
        self._numbers = itertools.count(1)
        #: Requests with their handles, by name.
        self._running: dict[str, tuple[LibraryRequest, Any]] = {}
        self._context_length = 0

    def load(self, tokenization: Tokenization) -> None:
        self._tokenization = tokenization
        self._context_length = self._find_context_length()
        self._pipeline = self._start()

    def _start(self) -> ContinuousBatchingPipeline:
        text, scheduler = self._model.text, self._genai.SchedulerConfig()
        scheduler.cache_size = 1 if text.kv_cache == "auto" else math.ceil(text.kv_cache / _GIB)
        scheduler.max_num_seqs = self.max_requests
        scheduler.max_num_batched_tokens = text.step_tokens + self.max_requests
        scheduler.enable_prefix_caching = text.prefix_cache
        # One thread per worker: with more, workers on shared cores wait for each other.
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1}
        if self._model.dtype != "auto":
            properties |= _PRECISIONS[self._model.dtype]
        source = Path(self._files.source, self._files.gguf or "")
        try:
            return self._genai.ContinuousBatchingPipeline(str(source), scheduler, "CPU", properties)
        except RuntimeError as error:
            raise UnsupportedModel(f"OpenVINO does not load {source}: {error}") from error

    def _find_context_length(self) -> int:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self._files.source, **self._files.options).get_text_config()
        own = getattr(config, "max_position_embeddings", None) or _MAX_CONTEXT
        wanted = self._model.text.context_length
        if wanted == "auto":
            return min(own, _MAX_CONTEXT)
        if wanted > own:
            raise UnsupportedModel(f"text.context_length is {wanted}, and the model's context has {own} tokens")
        return wanted

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def max_requests(self) -> int:
        return _MAX_REQUESTS if self._model.max_batch_size == "auto" else self._model.max_batch_size

    @property
    def dtype(self) -> str:
        return "" if self._model.dtype == "auto" else self._model.dtype

    @property
    def has_grammars(self) -> bool:
        return False

    def unsupported(self, inputs: TextInputs) -> str:
        return unsupported_inputs(inputs)

    def add(self, request: LibraryRequest) -> None:
        import openvino

        config = self._genai.GenerationConfig()
        for name, value in generation_options(request).items():
            setattr(config, name, value)
        tokens = openvino.Tensor(np.array([request.context], dtype=np.int64))
        self._running[request.name] = request, self._pipeline.add_request(next(self._numbers), tokens, config)

    def abort(self, names: Sequence[str]) -> None:
        for name in names:
            _, handle = self._running.pop(name)
            handle.cancel()

    def step(self) -> list[LibraryOutput]:
        self._pipeline.step()
        return [output for name in list(self._running) if (output := self._read(name)) is not None]

    def _read(self, name: str) -> LibraryOutput | None:
        request, handle = self._running[name]
        tokens: list[int] = []
        logprobs: list[float] = []
        while handle.can_read():
            for part in handle.read().values():
                tokens += part.generated_ids
                logprobs += part.generated_log_probs
        is_ended = handle.get_status() != self._genai.GenerationStatus.RUNNING
        if is_ended:
            del self._running[name]
        if not tokens and not is_ended:
            return None
        own: list[TokenLogprob] = []
        if request.inputs.logprobs is not None:
            token_bytes = self._tokenization.token_bytes
            own = [TokenLogprob(token_bytes[token], each) for token, each in zip(tokens, logprobs, strict=True)]
        problem = "OpenVINO has no memory for this text" if is_ended and not tokens else ""
        return LibraryOutput(name, tokens, own, is_ended=is_ended, problem=problem)

    def recover(self) -> None:
        """Start again: nothing says which blocks of the cache a failed step has computed."""
        self._pipeline = self._start()

    def check(self) -> None:
        """OpenVINO does not show its logits."""

    def fingerprint(self) -> str:
        version = importlib.metadata.version("openvino-genai")
        return f"openvino-genai {version} CPU {self.dtype} {self.max_requests}"

    def usage(self) -> LibraryUsage:
        return LibraryUsage()

    def memory_bytes(self) -> int:
        return int(psutil.Process().memory_info().rss)

    def close(self) -> None:
        """The process ends."""
