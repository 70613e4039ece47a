"""Where the files of a language model are: built in, a folder, a GGUF file, or the hub."""

from __future__ import annotations

from typing import Any, NamedTuple

from configs.model_settings import Model
from worker.engine import UnsupportedModel
from worker.engines.model_location import local_path


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
    place = local_path(model.path, "config.json")
    if place is None:
        return ModelFiles(model.path, local=False, revision=model.revision)
    if place.is_dir():
        return ModelFiles(str(place), local=True)
    if place.suffix == ".gguf":
        return ModelFiles(str(place.parent), local=True, gguf=place.name)
    raise UnsupportedModel(f"{place} is not supported: a language model is a folder, a hub id or a .gguf file")
