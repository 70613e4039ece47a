"""From what a request says to the arguments of a pipeline's `__call__`, by their names in its signature.

What a request asks for and the pipeline has no argument for is refused, where it was the request's own wish. Settings
that every request has, such as guidance, are left out. A pipeline that takes no prompt draws whatever it draws.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from wire.messages import SOURCES, DrawMode, ImageInputs
from worker.engine import TaskError, UnsupportedModel

#: Where the source picture goes. A ControlNet that draws from another picture as well gets this one for both.
_PICTURES = ("image", "control_image")
_MASK = "mask_image"
_GIVEN = frozenset({"prompt", "class_labels", "generator", *_PICTURES, _MASK})


class Arguments:
    """What one class of pipelines can be told."""

    def __init__(self, pipeline: Any) -> None:
        """Raises `UnsupportedModel` where it must be told what no request says."""
        self._pipeline = pipeline
        self._taken = inspect.signature(type(pipeline).__call__).parameters
        needed = [
            name
            for name, parameter in list(self._taken.items())[1:]
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            and name not in _GIVEN
        ]
        if needed:
            raise UnsupportedModel(f"a {type(pipeline).__name__} needs {', '.join(needed)}, which no request has")

    @property
    def reads_prompt(self) -> bool:
        """Whether it makes any difference what a request says."""
        return "prompt" in self._taken or "class_labels" in self._taken

    @property
    def sized(self) -> bool:
        """Whether it can be told a size."""
        return "height" in self._taken or "width" in self._taken

    def modes(self) -> list[DrawMode]:
        """What it might draw from. Whether it does, only it knows."""
        modes: list[DrawMode] = ["text"]
        if any(name in self._taken for name in _PICTURES):
            modes.append("image")
        if _MASK in self._taken:
            modes.append("inpaint")
        return modes

    def of(self, inputs: ImageInputs, sources: Sequence[bytes]) -> dict[str, Any]:
        """Keyword arguments for this request. Raises `TaskError` for what cannot be told to the pipeline."""
        if inputs.loras:
            raise TaskError("invalid", "this model takes no LoRA adapters")
        offered: dict[str, Any] = {
            "height": inputs.height,
            "width": inputs.width,
            "num_inference_steps": inputs.steps,
            "num_images_per_prompt": 1,
            # On the CPU, so that a seed gives the same noise on every device and in every batch.
            "generator": torch.Generator("cpu").manual_seed(inputs.seed),
            "output_type": "np",  # in which numbers that are none can be seen
            **self._guidance(inputs),
            **self._pictures(inputs, sources),
        }
        if "prompt" in self._taken:
            offered["prompt"] = inputs.prompt
        elif "class_labels" in self._taken:
            offered["class_labels"] = [self._label(inputs.prompt)]
        return {name: value for name, value in offered.items() if name in self._taken}

    def _guidance(self, inputs: ImageInputs) -> dict[str, Any]:
        """`true_cfg_scale` is guidance by a negative prompt, in pipelines whose `guidance_scale` is something else."""
        true_scale = self._taken["true_cfg_scale"].default if "true_cfg_scale" in self._taken else None
        if isinstance(true_scale, int | float) and true_scale > 1:
            return {"true_cfg_scale": inputs.guidance_scale, "negative_prompt": inputs.negative_prompt or " "}
        if inputs.negative_prompt and ("negative_prompt" not in self._taken or "true_cfg_scale" in self._taken):
            raise TaskError("invalid", "this model takes no negative prompt")
        # None is more than empty: it lets the pipeline choose what stands for nothing.
        return {"guidance_scale": inputs.guidance_scale, "negative_prompt": inputs.negative_prompt or None}

    def _pictures(self, inputs: ImageInputs, sources: Sequence[bytes]) -> dict[str, Any]:
        if len(sources) != SOURCES[inputs.mode]:
            raise TaskError(
                "invalid", f"mode '{inputs.mode}' takes {SOURCES[inputs.mode]} pictures, {len(sources)} came"
            )
        if inputs.mode == "text":
            return {}
        pictures = [_picture(mode, inputs, source) for mode, source in zip(("RGB", "L"), sources, strict=False)]
        found: dict[str, Any] = dict.fromkeys(_PICTURES, pictures[0]) | {"strength": inputs.strength}
        if inputs.mode == "inpaint":
            found[_MASK] = pictures[1]
        return found

    def _label(self, prompt: str) -> int:
        """The class that a prompt names, by its number or by a name that the checkpoint knows."""
        text = prompt.strip()
        labels: dict[str, int] = getattr(self._pipeline, "labels", {})
        label = int(text) if text.isdecimal() else labels.get(text)
        classes = self._pipeline.transformer.config.num_embeds_ada_norm
        if label is None or label >= classes:
            raise TaskError(
                "invalid", f"this model draws classes: the prompt must be a number below {classes} or the name of one"
            )
        return label


def _picture(mode: str, inputs: ImageInputs, source: bytes) -> Image.Image:
    wanted = inputs.width * inputs.height * len(mode)
    if len(source) != wanted:
        raise TaskError(
            "invalid", f"a picture of {inputs.width}x{inputs.height} has {wanted} bytes, {len(source)} came"
        )
    return Image.frombytes(mode, (inputs.width, inputs.height), bytes(source))
