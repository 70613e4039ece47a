"""Sections of a model that replace parts of its checkpoint. The docstring of a field is its documentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from configs.sections import Section, expand_home

#: `auto`, or the precision of weights.
Dtype = Literal["auto", "float32", "float16", "bfloat16"]


def _checkpoint_path(value: str) -> str:
    return expand_home(value) if value.startswith("~") else value


#: `builtin:NAME`, a local folder, a `.safetensors` file, or a hub id.
CheckpointPath = Annotated[str, AfterValidator(_checkpoint_path)]


class Vae(Section):
    """The autoencoder. A text in place of this section is its `path`."""

    path: CheckpointPath | None = None
    """Replaces the checkpoint's own: a folder, a `.safetensors` file, or a hub id."""
    dtype: Dtype = "auto"
    """`auto`: float32 where its configuration requires it (`force_upcast`), otherwise the denoiser's."""


def _vae(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


VaeSection = Annotated[Vae, BeforeValidator(_vae, json_schema_input_type=str | Vae)]
