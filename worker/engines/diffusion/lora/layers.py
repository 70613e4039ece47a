"""LoRA layers inside a model: load, activate between steps, delete.

PEFT wraps each layer that an adapter changes. The wrappers are in the model only while an active adapter needs them.
Without one, the model consists of exactly the loaded modules, with equal speed and results.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from transformers import PreTrainedModel

from worker.engines.diffusion.lora.files import layer_sizes, validate_lora_file

#: Active adapters by their names inside the model, with their scales. Equal values mean equal weights.
LoraScales = tuple[tuple[str, float], ...]


@dataclass
class _Slot:
    """The position of a layer that adapters change."""

    parent: torch.nn.Module
    attribute: str
    wrapper: LoraLayer
    plain: torch.nn.Module
    #: A layer of a text encoder.
    encodes_text: bool
    wrapped: bool = True

    def wrap(self, enabled: bool) -> None:
        if enabled != self.wrapped:
            setattr(self.parent, self.attribute, self.wrapper if enabled else self.plain)
            self.wrapped = enabled


class LoraLayers:
    """The adapter layers of one pipeline. All methods but `text_encoders` without adapters are called from one thread.

    Outside of `text_encoders`, these consist of the loaded modules.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        names = pipeline._lora_loadable_modules
        self._parts = {name: part for name in names if (part := getattr(pipeline, name, None)) is not None}
        self._sizes = {name: layer_sizes(part) for name, part in self._parts.items()}
        self._slots: list[_Slot] = []
        #: Active adapters. All wrappers share this list, so that switching does not visit each of them.
        self._active_names: list[str] = []
        self._scales: dict[str, float] = {}
        self._text_encoder_adapters: set[str] = set()
        self._encoders_lock = threading.Lock()
        #: Empty: the model consists of the loaded modules.
        self.active: LoraScales = ()

    def text_encoder_scales(self, lora_scales: LoraScales) -> LoraScales:
        return tuple(one for one in lora_scales if one[0] in self._text_encoder_adapters)

    @contextmanager
    def text_encoders(self, lora_scales: LoraScales) -> Iterator[None]:
        """Run the block with the text encoders' layers of exactly these adapters. One block runs at a time."""
        with self._encoders_lock:
            if not self.text_encoder_scales(lora_scales):
                yield
                return
            self.activate(lora_scales)
            try:
                self._wrap(encodes_text=True)
                yield
            finally:
                for slot in self._slots:
                    if slot.encodes_text:
                        slot.wrap(False)

    def activate(self, lora_scales: LoraScales) -> None:
        """Activate exactly these loaded adapters in the denoiser. This is a no-op if they are active."""
        if lora_scales == self.active:
            return
        self._active_names[:] = [adapter_name for adapter_name, _ in lora_scales]
        changed = [
            (adapter_name, scale) for adapter_name, scale in lora_scales if self._scales.get(adapter_name) != scale
        ]
        for slot in self._slots:
            for adapter_name, scale in changed:
                slot.wrapper.set_scale(adapter_name, scale)
        self._wrap(encodes_text=False)
        self._scales |= dict(changed)
        self.active = lora_scales

    def _wrap(self, *, encodes_text: bool) -> None:
        """Put in the wrappers that the active adapters need, and take out the others."""
        for slot in self._slots:
            if slot.encodes_text == encodes_text:
                slot.wrap(any(adapter_name in slot.wrapper.scaling for adapter_name in self._active_names))

    def validate(self, path: Path) -> Mapping[str, int]:
        """Return the file's tensors for each part. Callable from any thread.

        Raises `ValueError` for a file that cannot be applied completely, and the libraries' errors.
        """
        return validate_lora_file(path, self._pipeline, self._sizes)

    def load(self, path: Path, adapter_name: str, tensors: Mapping[str, int]) -> None:
        """Load the validated file's adapter under this name and deactivate all. On failure, the model is unchanged.

        Raises `ValueError` for a file that was not applied completely, and the libraries' errors.
        """
        self.activate(())
        try:
            # Tensors of inference mode could not be used outside of it.
            with self._all_wrapped(), torch.inference_mode(False):
                self._add(path, adapter_name, tensors)
        except BaseException:
            self.delete([adapter_name])
            raise

    def delete(self, leaving: Sequence[str]) -> None:
        """Remove these adapters, even if partly loaded, and deactivate all."""
        with self._all_wrapped():
            self._deactivate_all()  # otherwise PEFT would activate another adapter
            self._pipeline.delete_adapters(list(leaving))
        for adapter_name in leaving:
            self._scales.pop(adapter_name, None)
            self._text_encoder_adapters.discard(adapter_name)

    def _add(self, path: Path, adapter_name: str, tensors: Mapping[str, int]) -> None:
        with warnings.catch_warnings():
            # Warnings about training, about keys that are counted below, and about slow methods.
            warnings.simplefilter("ignore")
            self._pipeline.load_lora_weights(
                str(path.parent),
                weight_name=path.name,
                adapter_name=adapter_name,
                use_safetensors=True,
                local_files_only=True,
            )
        for name, part in self._parts.items():
            own = [parameter for place, parameter in part.named_parameters() if adapter_name in place.split(".")]
            if len(own) != tensors[name]:
                raise ValueError(f"of its {tensors[name]} weights for the {name}, only {len(own)} were loaded")
            for parameter in own:
                if parameter.device.type == "cpu":
                    # The tensor is the file mapped into memory: writing to the file would change it or crash us.
                    parameter.data = parameter.detach().clone()
            if own and isinstance(part, PreTrainedModel):
                self._text_encoder_adapters.add(adapter_name)

    @contextmanager
    def _all_wrapped(self) -> Iterator[None]:
        """Run the block with all wrappers installed, as the libraries expect; afterwards with none."""
        with self._encoders_lock:
            for slot in self._slots:
                slot.wrap(True)
            try:
                yield
            finally:
                self._deactivate_all()
                for slot in self._slots:
                    slot.wrap(False)
                self._slots = [slot for slot in self._slots if slot.wrapper.scaling]

    def _deactivate_all(self) -> None:
        """Collect all wrappers and deactivate their adapters."""
        self._active_names.clear()
        self.active = ()
        self._slots = []
        for part in self._parts.values():
            part.eval()  # new layers are in training mode, with dropout
            for path, module in list(part.named_modules()):
                if isinstance(module, LoraLayer):
                    module.set_adapter(self._active_names, inference_mode=True)
                    parent, _, attribute = path.rpartition(".")
                    own = part.get_submodule(parent)
                    encodes_text = isinstance(part, PreTrainedModel)
                    self._slots.append(_Slot(own, attribute, module, module.get_base_layer(), encodes_text))
