"""Sections of a model that replace parts of its checkpoint. The docstring of a field is its documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from configs.section_base import Section, expand_home

#: The folder of the built-in models, and what their paths begin with.
BUILTIN_DIR = Path(__file__).parents[1] / "worker" / "builtin"
_BUILTIN_PREFIX = "builtin:"
#: `auto`, or the precision of weights.
Dtype = Literal["auto", "float32", "float16", "bfloat16"]


def builtin_folder(path: str) -> Path | None:
    """Return the folder of a built-in model, which may not exist; None for the path of any other model."""
    return BUILTIN_DIR / path.removeprefix(_BUILTIN_PREFIX) if path.startswith(_BUILTIN_PREFIX) else None


def _checkpoint_path(value: str) -> str:
    if "\0" in value:
        raise ValueError("must be a folder, a file, or a hub id")
    return expand_home(value) if value.startswith("~") else value


#: `builtin:NAME`, a local folder, a `.safetensors` file, or a hub id.
CheckpointPath = Annotated[str, AfterValidator(_checkpoint_path)]


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("must be a folder, a file, or a hub id; without the key, the checkpoint's own part is used")
    return value


#: The checkpoint of a part of a model, such as its autoencoder.
PartPath = Annotated[CheckpointPath, AfterValidator(_not_empty)]


def _switch(value: Any) -> Any:
    """`on` and `off` are booleans to a reader of YAML 1.1."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class Vae(Section):
    """The autoencoder. A text in place of this section is its `path`."""

    path: PartPath | None = None
    """Replaces the checkpoint's own: a folder, a `.safetensors` file, or a hub id."""
    dtype: Dtype = "auto"
    """`auto`: float32 where its configuration requires it (`force_upcast`), otherwise the denoiser's."""
    tiling: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    """Decode large images in tiles, which takes less memory. `auto`: on GPUs above 1.5 million pixels, and whenever an
    image does not fit otherwise."""
    preview: Annotated[PartPath, BeforeValidator(_switch)] = "auto"
    """A small autoencoder (`AutoencoderTiny`) for previews: a folder or a hub id. `auto`: a folder in the checkpoint's,
    if one holds it. `off`: previews are decoded as images are."""


def _vae(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


VaeSection = Annotated[Vae, BeforeValidator(_vae, json_schema_input_type=str | Vae)]
