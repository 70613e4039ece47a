"""Where the files of a checkpoint are: built in, a folder, a single file with its base, or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import diffusers
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

from configs.model_settings import Model
from worker.engine import UnsupportedModel
from worker.engines.model_location import local_path


class Source(NamedTuple):
    """Location of a checkpoint."""

    #: Folder or hub id with model_index.json and the configuration of the parts.
    config: str
    #: True if `config` is a local folder.
    local: bool
    #: The single file with weights; None if they are beside the configuration.
    weights: Path | None = None
    #: Branch, tag or commit of a hub id; None for the main branch.
    revision: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of diffusers' loaders for `config`."""
        return {"local_files_only": self.local} | ({"revision": self.revision} if self.revision else {})

    def read_index(self) -> dict[str, Any]:
        """Return model_index.json. Raises `UnsupportedModel` if there is none or the hub does not return it."""
        try:
            index: dict[str, Any] = diffusers.DiffusionPipeline.load_config(self.config, **self.options)
        except OSError as error:
            if self.local:
                raise UnsupportedModel(f"{self.config} is not a checkpoint in diffusers format: {error}") from error
            if self.weights is None:
                raise UnsupportedModel(
                    f"{self.config} is no folder or file here, and the hub did not return it: {error}; check the "
                    "name, the network, and HF_TOKEN if the model needs an account"
                ) from error
            raise UnsupportedModel(
                f"{self.weights} needs the configuration of {self.config}, which the hub did not return: {error}; "
                f"without a network, put that folder beside the file as {self.weights.stem}, or set base to it"
            ) from error
        return index


def describe_files(model: Model) -> str:
    """Return a text that names all files that the model's weights come from."""
    other = {"revision": model.revision, "base": model.base, "controlnet": model.controlnet, **model.replaced_parts}
    return ", ".join([model.path, *(f"{name} {value}" for name, value in other.items() if value is not None)])


def locate_model(model: Model) -> Source:
    """Find the model's checkpoint. Raises as `locate` does."""
    file = Path(model.path).expanduser()
    if model.base is not None and file.is_file():
        base = locate(model.base)
        if base.weights is not None:
            raise UnsupportedModel(f"base must be a folder or a hub id, {model.base} is a file")
        return base._replace(weights=_safetensors(file), revision=None if base.local else model.revision)
    source = locate(model.path)
    return source if source.local else source._replace(revision=model.revision)


def locate(path: str) -> Source:
    """Find the checkpoint. Raises `UnsupportedModel`, or `OSError` for an unreadable file."""
    place = local_path(path, "model_index.json")
    if place is None:
        return Source(path, local=False)
    return Source(str(place), local=True) if place.is_dir() else _single_file(place)


def _single_file(file: Path) -> Source:
    """Use the configuration in the folder named like the file, or else that of its base model."""
    beside = _safetensors(file).with_suffix("")
    if (beside / "model_index.json").is_file():
        return Source(str(beside), local=True, weights=file)
    return Source(
        fetch_diffusers_config(load_single_file_checkpoint(str(file)))["pretrained_model_name_or_path"],
        local=False,
        weights=file,
    )


def _safetensors(file: Path) -> Path:
    if file.suffix != ".safetensors":
        raise UnsupportedModel(f"{file} is not supported: single files must be .safetensors")
    return file
