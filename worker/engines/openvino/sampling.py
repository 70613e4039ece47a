"""Parameters of requests in OpenVINO's terms. Imports no library."""

from __future__ import annotations

from typing import Any

from wire.inputs import TextInputs
from worker.engines.text_library.interface import LibraryRequest

#: Seeds of texts that go on elsewhere differ by this, so that they do not draw the same numbers again.
_SEED_STEP = 0x9E3779B97F4A7C15
_SEED_MASK = 2**63 - 1


def unsupported_inputs(inputs: TextInputs) -> str:
    """Return the sentence for inputs that OpenVINO does not take; empty for others."""
    other = "; engines text and vllm take it"
    if inputs.sampling.logit_bias:
        return f"engine openvino has no logit_bias{other}"
    if inputs.logprobs:
        return f"engine openvino reports log-probabilities of the generated tokens only, without alternatives{other}"
    return ""


def generation_options(request: LibraryRequest) -> dict[str, Any]:
    """Return the attributes of its GenerationConfig.

    Where the text ends is found outside: OpenVINO only keeps the ends away while the text is too short.
    """
    sampling, generation = request.inputs.sampling, request.generation
    done = len(generation.tokens)
    options: dict[str, Any] = {
        "max_new_tokens": request.missing_tokens,
        "ignore_eos": True,
        "do_sample": sampling.temperature > 0,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if generation.forbidden:
        options["stop_token_ids"] = set(generation.forbidden)
        options["min_new_tokens"] = min(request.inputs.min_tokens - done, request.missing_tokens)
    if request.inputs.logprobs is not None:
        options["logprobs"] = 1
    if sampling.temperature > 0:
        options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "min_p": sampling.min_p}
        options["rng_seed"] = (sampling.seed + done * _SEED_STEP) & _SEED_MASK
        if sampling.top_k:
            options["top_k"] = sampling.top_k
    return options
