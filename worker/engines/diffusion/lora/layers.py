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

from worker.engines.diffusion.lora.files import Contents, read

#: What the weights are set to: adapters by their names inside the model, and their scales. Equal for equal weights.
Adapted = tuple[tuple[str, float], ...]


@dataclass
class _Slot:
    """The place of a layer that adapters change."""

    parent: torch.nn.Module
    attribute: str
    wrapper: LoraLayer
    plain: torch.nn.Module
    wrapped: bool = True

    def wrap(self, wanted: bool) -> None:
        """Put PEFT's wrapper, or else the layer itself, in its place."""
        if wanted != self.wrapped:
            setattr(self.parent, self.attribute, self.wrapper if wanted else self.plain)
            self.wrapped = wanted


class AdapterLayers:
    """The layers of one pipeline's parts that adapters change. All methods are called from one thread."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        names = pipeline._lora_loadable_modules
        self._parts = {name: part for name in names if (part := getattr(pipeline, name, None)) is not None}
        self._slots: list[_Slot] = []
        #: Adapters that count. Every wrapper has this very list, so that switching need not visit them one by one.
        self._counting: list[str] = []
        self._scales: dict[str, float] = {}
        #: Adapters that change text encoders.
        self._encoding: set[str] = set()
        #: What the model is set to: with nothing, it is just the modules that were loaded.
        self.now: Adapted = ()

    def encoders(self, adapted: Adapted) -> Adapted:
        """Those of them that count when texts are encoded."""
        return tuple(one for one in adapted if one[0] in self._encoding)

    def use(self, adapted: Adapted) -> None:
        """Set the model to these adapters, which are loaded. Costs next to nothing where it is set to them."""
        if adapted == self.now:
            return
        self._counting[:] = [inside for inside, _ in adapted]
        changed = [(inside, scale) for inside, scale in adapted if self._scales.get(inside) != scale]
        for slot in self._slots:
            for inside, scale in changed:
                slot.wrapper.set_scale(inside, scale)
            slot.wrap(any(inside in slot.wrapper.scaling for inside in self._counting))
        self._scales |= dict(changed)
        self.now = adapted

    def load(self, path: Path, inside: str) -> None:
        """Load the file's adapter under this name, and use none. The model is as it was where this fails.

        Raises `ValueError` for a file that is not usable as a whole, and whatever the libraries raise for it.
        """
        self.use(())
        try:
            contents = read(path, self._pipeline, self._parts)
            # Outside of inference mode, whose tensors could not be used anywhere else.
            with self._all_wrapped(), torch.inference_mode(False):
                self._add(path, inside, contents)
        except BaseException:
            self.delete([inside])
            raise

    def delete(self, leaving: Sequence[str]) -> None:
        """Take these out of the model, whatever there is of them, and use none."""
        with self._all_wrapped():
            self._collect()  # which makes none of them count: PEFT would let another one count in its stead
            self._pipeline.delete_adapters(list(leaving))
        for inside in leaving:
            self._scales.pop(inside, None)
            self._encoding.discard(inside)

    def _add(self, path: Path, inside: str, contents: Contents) -> None:
        with warnings.catch_warnings():
            # They are about training, about keys that are counted below, and about slow ways of doing this.
            warnings.simplefilter("ignore")
            self._pipeline.load_lora_weights(
                str(path.parent),
                weight_name=path.name,
                adapter_name=inside,
                use_safetensors=True,
                local_files_only=True,
            )
        for name, part in self._parts.items():
            own = [parameter for place, parameter in part.named_parameters() if inside in place.split(".")]
            if len(own) != contents.tensors[name]:
                raise ValueError(
                    f"of its {contents.tensors[name]} weights for the {name}, {len(own)} found their place"
                )
            for parameter in own:
                if parameter.device.type == "cpu":
                    # It is the file itself, mapped into memory: whoever wrote to that would change it, or end us.
                    parameter.data = parameter.detach().clone()
            if own and isinstance(part, PreTrainedModel):
                self._encoding.add(inside)

    @contextmanager
    def _all_wrapped(self) -> Iterator[None]:
        """In here all wrappers stand in the model, as the libraries expect it. Afterwards none does."""
        for slot in self._slots:
            slot.wrap(True)
        try:
            yield
        finally:
            self._collect()
            for slot in self._slots:
                slot.wrap(False)
            self._slots = [slot for slot in self._slots if slot.wrapper.scaling]

    def _collect(self) -> None:
        """Find all wrappers, with none of their adapters counting."""
        self._counting.clear()
        self.now = ()
        self._slots = []
        for part in self._parts.values():
            part.eval()  # what was just loaded is as if in training, and may drop out at random
            for path, module in list(part.named_modules()):
                if isinstance(module, LoraLayer):
                    module.set_adapter(self._counting, inference_mode=True)
                    parent, _, attribute = path.rpartition(".")
                    self._slots.append(_Slot(part.get_submodule(parent), attribute, module, module.get_base_layer()))
