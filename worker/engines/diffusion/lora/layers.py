"""Adapters inside a model: loaded, switched between steps, and taken out without a trace.

PEFT wraps each layer that an adapter changes. Here the wrappers stand in the model only while adapters that need them
are in use: without any, the model is the very modules that were loaded, as fast and as exact as if there had never
been an adapter.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from transformers import PreTrainedModel

from worker.engines.diffusion.lora.files import LoraFile, read_lora_file

#: What the weights are set to: adapters by their names inside the model, and their scales. Equal for equal weights.
LoraScales = tuple[tuple[str, float], ...]


@dataclass
class _Slot:
    """The place of a layer that adapters change."""

    parent: torch.nn.Module
    attribute: str
    wrapper: LoraLayer
    plain: torch.nn.Module
    wrapped: bool = True

    def wrap(self, enabled: bool) -> None:
        """Put PEFT's wrapper, or else the layer itself, in its place."""
        if enabled != self.wrapped:
            setattr(self.parent, self.attribute, self.wrapper if enabled else self.plain)
            self.wrapped = enabled


class LoraLayers:
    """The layers of one pipeline's parts that adapters change. All methods are called from one thread."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        names = pipeline._lora_loadable_modules
        self._parts = {name: part for name in names if (part := getattr(pipeline, name, None)) is not None}
        self._slots: list[_Slot] = []
        #: Adapters that count. Every wrapper has this very list, so that switching need not visit them one by one.
        self._active_names: list[str] = []
        self._scales: dict[str, float] = {}
        #: Adapters that change text encoders.
        self._text_encoder_adapters: set[str] = set()
        #: What the model is set to: with nothing, it is just the modules that were loaded.
        self.active: LoraScales = ()

    def text_encoder_scales(self, lora_scales: LoraScales) -> LoraScales:
        """Those of them that count when texts are encoded."""
        return tuple(one for one in lora_scales if one[0] in self._text_encoder_adapters)

    def activate(self, lora_scales: LoraScales) -> None:
        """Set the model to these adapters, which are loaded. Costs next to nothing where it is set to them."""
        if lora_scales == self.active:
            return
        self._active_names[:] = [adapter_name for adapter_name, _ in lora_scales]
        changed = [
            (adapter_name, scale) for adapter_name, scale in lora_scales if self._scales.get(adapter_name) != scale
        ]
        for slot in self._slots:
            for adapter_name, scale in changed:
                slot.wrapper.set_scale(adapter_name, scale)
            slot.wrap(any(adapter_name in slot.wrapper.scaling for adapter_name in self._active_names))
        self._scales |= dict(changed)
        self.active = lora_scales

    def load(self, path: Path, adapter_name: str) -> None:
        """Load the file's adapter under this name, and use none. The model is as it was where this fails.

        Raises `ValueError` for a file that is not usable as a whole, and whatever the libraries raise for it.
        """
        self.activate(())
        try:
            lora_file = read_lora_file(path, self._pipeline, self._parts)
            # Outside of inference mode, whose tensors could not be used anywhere else.
            with self._all_wrapped(), torch.inference_mode(False):
                self._add(path, adapter_name, lora_file)
        except BaseException:
            self.delete([adapter_name])
            raise

    def delete(self, leaving: Sequence[str]) -> None:
        """Take these out of the model, whatever there is of them, and use none."""
        with self._all_wrapped():
            self._deactivate_all()  # which makes none of them count: PEFT would let another one count in its stead
            self._pipeline.delete_adapters(list(leaving))
        for adapter_name in leaving:
            self._scales.pop(adapter_name, None)
            self._text_encoder_adapters.discard(adapter_name)

    def _add(self, path: Path, adapter_name: str, lora_file: LoraFile) -> None:
        with warnings.catch_warnings():
            # They are about training, about keys that are counted below, and about slow ways of doing this.
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
            if len(own) != lora_file.tensors[name]:
                raise ValueError(
                    f"of its {lora_file.tensors[name]} weights for the {name}, {len(own)} found their place"
                )
            for parameter in own:
                if parameter.device.type == "cpu":
                    # It is the file itself, mapped into memory: whoever wrote to that would change it, or end us.
                    parameter.data = parameter.detach().clone()
            if own and isinstance(part, PreTrainedModel):
                self._text_encoder_adapters.add(adapter_name)

    @contextmanager
    def _all_wrapped(self) -> Iterator[None]:
        """In here all wrappers stand in the model, as the libraries expect it. Afterwards none does."""
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
        """Find all wrappers, with none of their adapters counting."""
        self._active_names.clear()
        self.active = ()
        self._slots = []
        for part in self._parts.values():
            part.eval()  # what was just loaded is as if in training, and may drop out at random
            for path, module in list(part.named_modules()):
                if isinstance(module, LoraLayer):
                    module.set_adapter(self._active_names, inference_mode=True)
                    parent, _, attribute = path.rpartition(".")
                    self._slots.append(_Slot(part.get_submodule(parent), attribute, module, module.get_base_layer()))
