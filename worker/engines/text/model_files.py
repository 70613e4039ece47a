"""Where the files of a language model are: built in, a folder, a GGUF file, or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from configs.model_parts import BUILTIN_DIR, builtin_folder
from configs.model_settings import Model
from worker.engine import UnsupportedModel


class ModelFiles(NamedTuple):
    """Location of a language model."""

    #: Folder or hub id.
    source: str
    #: True if `source` is a local folder.
    local: bool
    #: Branch, tag or commit of a hub id; None for the main branch.
    revision: str | None = None
    #: Name of a GGUF file in `source` that holds weights and tokenizer.
    gguf: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of transformers' loaders for `source`."""
        options: dict[str, Any] = {"local_files_only": self.local, "trust_remote_code": False}
        if self.revision is not None:
            options["revision"] = self.revision
        if self.gguf is not None:
            options["gguf_file"] = self.gguf
        return options


def locate_files(model: Model) -> ModelFiles:
    """Find the model's files. Raises `UnsupportedModel` for a path with none."""
    path = model.path
    if (folder := builtin_folder(path)) is not None:
        if not (folder / "config.json").is_file():
            there = sorted(file.parent.name for file in BUILTIN_DIR.glob("*/config.json"))
            raise UnsupportedModel(
                f"no built-in language model {folder.name!r}; built in: {', '.join(there) or 'none'}"
            )
        return ModelFiles(str(folder), local=True)
    place = Path(path).expanduser()
    if place.is_dir():
        return ModelFiles(str(place), local=True)
    if place.is_file() and place.suffix == ".gguf":
        return ModelFiles(str(place.parent), local=True, gguf=place.name)
    if place.is_file():
        raise UnsupportedModel(f"{path} is not supported: a language model is a folder, a hub id or a .gguf file")
    if path.startswith(("/", ".", "~")) or place.suffix in {".gguf", ".safetensors"}:
        raise UnsupportedModel(f"no such folder or file: {path}")
    return ModelFiles(path, local=False, revision=model.revision)
