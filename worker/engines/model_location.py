"""Where a model is: built in, a folder or a file on this machine, or a repository of the hub."""

from __future__ import annotations

from pathlib import Path

from configs.model_parts import BUILTIN_DIR, builtin_folder
from worker.engine import UnsupportedModel

#: Files of weights. A path with one of these suffixes is no hub id.
_SUFFIXES = frozenset({".gguf", ".safetensors"})


def local_path(path: str, index: str) -> Path | None:
    """Return the model's folder or file; None for a hub id.

    `index` is the file that each built-in model of the engine has. Raises `UnsupportedModel` if there is nothing.
    """
    if (folder := builtin_folder(path)) is not None:
        if not (folder / index).is_file():
            there = sorted(file.parent.name for file in BUILTIN_DIR.glob(f"*/{index}"))
            raise UnsupportedModel(
                f"no built-in model {folder.name!r} for this engine; built in: {', '.join(there) or 'none'}"
            )
        return folder
    place = Path(path).expanduser()
    if place.is_dir() or place.is_file():
        return place
    if path.startswith(("/", ".", "~")) or place.suffix in _SUFFIXES:
        raise UnsupportedModel(f"no such folder or file: {path}")
    return None
