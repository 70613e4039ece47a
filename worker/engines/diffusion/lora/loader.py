"""LoRA adapters that requests name: which files they are, which of them are in memory, and for how long."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from wire.messages import LORA_NAME, Lora
from worker.engine import DeviceLost, OutOfMemory, TaskError
from worker.engines.diffusion.device import failures
from worker.engines.diffusion.lora.layers import Adapted, AdapterLayers
from worker.engines.diffusion.lora.refcounted_lru import Shelf

#: A message of PEFT lists every layer; its beginning says what is wrong.
_LONGEST_REASON = 200


class _Version(NamedTuple):
    """A file as it was when it was looked at. Replacing it makes another one."""

    name: str
    path: Path
    size: int
    modified_ns: int
    inode: int


def in_order(loras: Sequence[Lora]) -> tuple[Lora, ...]:
    """These in the order in which they are applied, however a request lists them: it decides on a sum's last bits."""
    return tuple(sorted(loras, key=attrgetter("name")))


class Adapters:
    """The adapters of one pipeline. All methods are called from one thread."""

    def __init__(self, pipeline: Any, folder: Path | None, room: int, device: torch.device) -> None:
        """`folder` holds `NAME.safetensors` files, `room` of which stay in memory for the next request.

        Without a folder there are none.
        """
        self._folder = folder
        self._device = device
        self._layers = AdapterLayers(pipeline)
        self._shelf: Shelf[str] = Shelf(room)
        #: Names inside the model are numbers: a file's name may hold dots, and a replaced file needs another one.
        self._numbers = itertools.count()
        self._loaded: dict[_Version, str] = {}

    def __repr__(self) -> str:
        return f"<Adapters {self._layers.now} active, {self._shelf!r}>"

    @property
    def active(self) -> bool:
        """Whether the model is anything but the modules that were loaded: what was compiled or recorded is not it."""
        return bool(self._layers.now)

    def acquire(self, loras: Sequence[Lora]) -> Adapted:
        """Have these in memory until they are released, as often as they are acquired; what `use` takes.

        A file that was replaced meanwhile is loaded anew, beside the old one while that is in use. Raises `TaskError`
        for an adapter that is not there, is broken, or does not fit the model; `OutOfMemory` and `DeviceLost`.
        """
        ordered = in_order(loras)
        taken: list[str] = []
        try:
            for lora in ordered:
                version = self._find(lora.name)
                taken.append(self._take(version))
            if len(set(taken)) < len(taken):
                raise TaskError("invalid", "an adapter is named twice")
        except BaseException:
            self._give_back(taken)
            raise
        return tuple(zip(taken, (lora.scale for lora in ordered), strict=True))

    def use(self, adapted: Adapted) -> None:
        """Set the model to these adapters, which are acquired. Costs next to nothing where it is set to them."""
        self._layers.use(adapted)

    def encoders(self, adapted: Adapted) -> Adapted:
        """Those of them that count when texts are encoded."""
        return self._layers.encoders(adapted)

    def release(self, adapted: Adapted) -> None:
        """What `acquire` gave is needed once less."""
        self._give_back([inside for inside, _ in adapted])

    def _give_back(self, taken: Sequence[str]) -> None:
        for inside in taken:
            self._shelf.give_back(inside)
        self._unload(self._shelf.surplus())

    def _take(self, version: _Version) -> str:
        for other, inside in self._loaded.items():
            if other.name == version.name and other != version:
                self._shelf.outdate(inside)
        if version not in self._loaded:
            self._unload(self._shelf.surplus(coming=1))
            inside = f"adapter_{next(self._numbers)}"
            self._load(version, inside)
            self._loaded[version] = inside
            self._shelf.put(inside)
        self._shelf.take(self._loaded[version])
        return self._loaded[version]

    def _find(self, name: str) -> _Version:
        """The adapter's file as it is now. Raises `TaskError` if there is none in the folder itself."""
        if self._folder is None:
            raise TaskError("invalid", "this model takes no adapters")
        if LORA_NAME.fullmatch(name):
            try:
                folder = self._folder.resolve(strict=True)
                path = (folder / f"{name}.safetensors").resolve(strict=True)
                stat = path.stat()
            except OSError:
                pass
            else:
                if path.is_relative_to(folder) and path.suffix == ".safetensors" and path.is_file():
                    return _Version(name, path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
        raise TaskError("invalid", f"the model has no adapter '{name}'")

    def _load(self, version: _Version, inside: str) -> None:
        try:
            with failures(self._device, f"loading adapter '{version.name}'"):
                self._layers.load(version.path, inside)
        except (OutOfMemory, DeviceLost):
            raise
        except Exception as error:  # whatever the libraries trip over, it was this file
            reason = " ".join(str(error).split())[:_LONGEST_REASON]
            raise TaskError("invalid", f"adapter '{version.name}' cannot be used with this model: {reason}") from error

    def _unload(self, leaving: Sequence[str]) -> None:
        if leaving:
            self._layers.delete(leaving)
            self._loaded = {version: inside for version, inside in self._loaded.items() if inside not in leaving}
            for inside in leaving:
                self._shelf.remove(inside)
