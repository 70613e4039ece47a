"""Maps a request to the arguments of a pipeline's `__call__`, by the names in its signature.

An option that the request sets explicitly but the pipeline lacks is rejected. Settings that every request has, such as
guidance, are left out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER, PreTrainedTokenizerBase

from wire.inputs import GenerationMode, ImageInputs
from worker.engine import TaskError, UnsupportedModel, check_sources
from worker.engines.diffusion.families.long_prompts import count_truncated

#: Parameters for the source image. A ControlNet pipeline gets it for both.
_IMAGE_NAMES = ("image", "control_image")
_MASK_NAME = "mask_image"
_PROVIDED = frozenset({"prompt", "class_labels", "generator", *_IMAGE_NAMES, _MASK_NAME})


class PipelineArguments:
    """The arguments that one pipeline class accepts."""

    def __init__(self, pipeline: Any) -> None:
        """Raises `UnsupportedModel` if a required parameter has no counterpart in a request."""
        self._pipeline = pipeline
        self._parameters = inspect.signature(type(pipeline).__call__).parameters
        missing = [
            name
            for name, parameter in list(self._parameters.items())[1:]
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            and name not in _PROVIDED
        ]
        if missing:
            raise UnsupportedModel(
                f"a {type(pipeline).__name__} needs {', '.join(missing)}, which requests cannot provide"
            )

    @property
    def takes_prompt(self) -> bool:
        return "prompt" in self._parameters or "class_labels" in self._parameters

    @property
    def takes_text(self) -> bool:
        return "prompt" in self._parameters

    @property
    def takes_size(self) -> bool:
        return "height" in self._parameters or "width" in self._parameters

    def modes(self) -> list[GenerationMode]:
        """Return candidate modes; the probe finds out which of them work."""
        modes: list[GenerationMode] = ["text"]
        if any(name in self._parameters for name in _IMAGE_NAMES):
            modes.append("image")
        if _MASK_NAME in self._parameters:
            modes.append("inpaint")
        return modes

    def for_request(self, inputs: ImageInputs, sources: Sequence[bytes]) -> dict[str, Any]:
        """Return the keyword arguments for this request. Raises `TaskError` for unsupported options."""
        if inputs.loras:
            raise TaskError("invalid", "this model does not support LoRA adapters")
        offered: dict[str, Any] = {
            "height": inputs.height,
            "width": inputs.width,
            "num_inference_steps": inputs.steps,
            "num_images_per_prompt": 1,
            # CPU noise: a seed gives the same noise on every device and in every batch.
            "generator": torch.Generator("cpu").manual_seed(inputs.seed),
            "output_type": "np",  # keeps values that are not finite visible
            **self._guidance(inputs),
            **self._images(inputs, sources),
        }
        if "prompt" in self._parameters:
            offered["prompt"] = inputs.prompt
        elif "class_labels" in self._parameters:
            offered["class_labels"] = [self._class_label(inputs.prompt)]
        return {name: value for name, value in offered.items() if name in self._parameters}

    def truncated_tokens(self, inputs: ImageInputs) -> int:
        """Return how many tokens at the ends of the request's texts the pipeline does not read."""
        if not self.takes_text:
            return 0
        return count_truncated(self._token_limits, [inputs.prompt, inputs.negative_prompt])

    @functools.cached_property
    def _token_limits(self) -> list[tuple[Any, int]]:
        """The tokenizers with the number of tokens that their encoders read."""
        length = self._parameters.get("max_sequence_length")
        usual = length.default if length is not None and isinstance(length.default, int) else None
        found = []
        for part in vars(self._pipeline).values():
            if isinstance(part, PreTrainedTokenizerBase):
                limits = [limit for limit in (usual, part.model_max_length) if limit and limit < VERY_LARGE_INTEGER]
                found.append((part, int(min(limits, default=VERY_LARGE_INTEGER))))
        return found

    def _guidance(self, inputs: ImageInputs) -> dict[str, Any]:
        """Use `true_cfg_scale` for guidance by a negative prompt in pipelines whose `guidance_scale` differs."""
        true_scale = self._parameters["true_cfg_scale"].default if "true_cfg_scale" in self._parameters else None
        if isinstance(true_scale, int | float) and true_scale > 1:
            return {"true_cfg_scale": inputs.guidance_scale, "negative_prompt": inputs.negative_prompt or " "}
        if inputs.negative_prompt and (
            "negative_prompt" not in self._parameters or "true_cfg_scale" in self._parameters
        ):
            raise TaskError("invalid", "this model does not support negative prompts")
        guidance: dict[str, Any] = {"guidance_scale": inputs.guidance_scale}
        if inputs.negative_prompt:  # otherwise the pipeline selects its own unconditional input
            guidance["negative_prompt"] = inputs.negative_prompt
        return guidance

    def _images(self, inputs: ImageInputs, sources: Sequence[bytes]) -> dict[str, Any]:
        check_sources(inputs, sources)
        if inputs.mode == "text":
            return {}
        size = inputs.width, inputs.height
        images = [
            Image.frombytes(mode, size, bytes(source)) for mode, source in zip(("RGB", "L"), sources, strict=False)
        ]
        found: dict[str, Any] = dict.fromkeys(_IMAGE_NAMES, images[0]) | {"strength": inputs.strength}
        if inputs.mode == "inpaint":
            found[_MASK_NAME] = images[1]
        return found

    def _class_label(self, prompt: str) -> int:
        """Return the class that a prompt names, by number or by the checkpoint's label."""
        text = prompt.strip()
        labels: dict[str, int] = getattr(self._pipeline, "labels", {})
        label = int(text) if text.isdecimal() else labels.get(text)
        classes = self._pipeline.transformer.config.num_embeds_ada_norm
        if label is None or label >= classes:
            raise TaskError(
                "invalid", f"the prompt must be a class number below {classes} or a class name of this model"
            )
        return label
