"""`LoraLoader`: finds, loads and unloads the adapters that requests name."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache

from wire.inputs import LORA_NAME, Lora
from worker.engine import DeviceLost, OutOfMemory, TaskError
from worker.engines.diffusion.lora.layers import LoraLayers, LoraScales
from worker.engines.diffusion.lora.refcounted_lru import RefCountedLru
from worker.engines.torch_device import translate_device_errors

#: PEFT's messages list every layer; the beginning states the reason.
_MAX_REASON_LENGTH = 200
#: Files whose validation is remembered until they are loaded.
_VALIDATED = 64


class _FileVersion(NamedTuple):
    """Identity of a file's content; replacing the file changes it."""

    name: str
    path: Path
    size: int
    modified_ns: int
    inode: int


def sort_loras(loras: Sequence[Lora]) -> tuple[Lora, ...]:
    """Return the adapters in canonical order: the order of a sum affects its last bits."""
    return tuple(sorted(loras, key=attrgetter("name")))


class LoraLoader:
    """The adapters of one pipeline. Its methods are called from one thread, unless they say otherwise."""

    def __init__(self, pipeline: Any, folder: Path | None, capacity: int, device: torch.device) -> None:
        """`folder` holds `NAME.safetensors` files; `capacity` of them stay loaded when unused.

        None as `folder` disables adapters.
        """
        self._folder = folder
        self._device = device
        self._layers = LoraLayers(pipeline)
        self._lru: RefCountedLru[str] = RefCountedLru(capacity)
        #: Names inside the model are numbers: file names may contain dots, and a replaced file needs a new name.
        self._numbers = itertools.count()
        self._loaded: dict[_FileVersion, str] = {}
        #: The tensors of files that have been read beside the steps, by part.
        self._validated: LRUCache[_FileVersion, Mapping[str, int]] = LRUCache(_VALIDATED)
        self._validated_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<LoraLoader {self._layers.active} active, {self._lru!r}>"

    @property
    def is_active(self) -> bool:
        """True if the model differs from the modules that were compiled or captured."""
        return bool(self._layers.active)

    def acquire(self, loras: Sequence[Lora]) -> LoraScales:
        """Load these adapters and hold them until `release`. Return the scales for `activate`.

        A replaced file is loaded again, beside the old version while that is in use. Raises `TaskError` for a missing,
        damaged or incompatible adapter, `OutOfMemory` and `DeviceLost`.
        """
        ordered = sort_loras(loras)
        acquired: list[str] = []
        try:
            for lora in ordered:
                version = self._find_file(lora.name)
                acquired.append(self._acquire(version))
            if len(set(acquired)) < len(acquired):
                raise TaskError("invalid", "an adapter is named twice")
        except BaseException:
            self._release(acquired)
            raise
        return tuple(zip(acquired, (lora.scale for lora in ordered), strict=True))

    def read(self, loras: Sequence[Lora]) -> None:
        """Read and validate the files of adapters that are not loaded. Callable from any thread.

        Raises `TaskError` for a missing, damaged or incompatible adapter.
        """
        for lora in loras:
            version = self._find_file(lora.name)
            if version not in self._loaded:
                with self._translated_errors(version):
                    tensors = self._layers.validate(version.path)
                with self._validated_lock:
                    self._validated[version] = tensors

    def loaded_scales(self, loras: Sequence[Lora]) -> LoraScales | None:
        """Return what `acquire` would, if all of these are loaded. Callable from any thread. Raises `TaskError`."""
        ordered = sort_loras(loras)
        names = [self._loaded.get(self._find_file(lora.name)) for lora in ordered]
        found = tuple((name, lora.scale) for name, lora in zip(names, ordered, strict=True) if name is not None)
        return found if len(found) == len(ordered) else None

    def activate(self, lora_scales: LoraScales) -> None:
        self._layers.activate(lora_scales)

    @contextmanager
    def text_encoders(self, lora_scales: LoraScales) -> Iterator[None]:
        """Run the block with these adapters in the text encoders. Without adapters, callable from any thread."""
        with self._layers.text_encoders(lora_scales):
            yield

    def text_encoder_scales(self, lora_scales: LoraScales) -> LoraScales:
        return self._layers.text_encoder_scales(lora_scales)

    def release(self, lora_scales: LoraScales) -> None:
        self._release([adapter_name for adapter_name, _ in lora_scales])

    def _release(self, acquired: Sequence[str]) -> None:
        for adapter_name in acquired:
            self._lru.release(adapter_name)
        self._unload(self._lru.evictable())

    def _acquire(self, version: _FileVersion) -> str:
        for other, adapter_name in self._loaded.items():
            if other.name == version.name and other != version:
                self._lru.mark_stale(adapter_name)
        if version not in self._loaded:
            self._unload(self._lru.evictable(incoming=1))
            adapter_name = f"adapter_{next(self._numbers)}"
            self._load(version, adapter_name)
            self._loaded[version] = adapter_name
            self._lru.add(adapter_name)
        self._lru.acquire(self._loaded[version])
        return self._loaded[version]

    def _find_file(self, name: str) -> _FileVersion:
        """Return the adapter's current file. Raises `TaskError` if it is not in the folder."""
        if self._folder is None:
            raise TaskError("invalid", "this model does not support LoRA adapters")
        if LORA_NAME.fullmatch(name):
            try:
                folder = self._folder.resolve(strict=True)
                path = (folder / f"{name}.safetensors").resolve(strict=True)
                stat = path.stat()
            except (OSError, RuntimeError):  # the latter for a link to itself
                pass
            else:
                if path.is_relative_to(folder) and path.suffix == ".safetensors" and path.is_file():
                    return _FileVersion(name, path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        raise TaskError("invalid", f"the model has no adapter '{name}'")

    def _load(self, version: _FileVersion, adapter_name: str) -> None:
        with self._validated_lock:
            tensors = self._validated.pop(version, None)
        with self._translated_errors(version):
            self._layers.load(version.path, adapter_name, tensors or self._layers.validate(version.path))

    @contextmanager
    def _translated_errors(self, version: _FileVersion) -> Iterator[None]:
        try:
            with translate_device_errors(self._device, f"loading adapter '{version.name}'"):
                yield
        except (OutOfMemory, DeviceLost):
            raise
        except Exception as error:  # any error of the libraries is due to this file
            reason = " ".join(str(error).split())[:_MAX_REASON_LENGTH]
            raise TaskError("invalid", f"adapter '{version.name}' cannot be used with this model: {reason}") from error

    def _unload(self, leaving: Sequence[str]) -> None:
        if leaving:
            self._layers.delete(leaving)
            self._loaded = {
                version: adapter_name for version, adapter_name in self._loaded.items() if adapter_name not in leaving
            }
            for adapter_name in leaving:
                self._lru.remove(adapter_name)
