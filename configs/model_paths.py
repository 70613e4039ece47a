"""The settings of a model that name files: by field, in the tree of a section `models.NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.checkpoint_files import is_hub_id
from configs.fields import Tree
from configs.model_parts import builtin_folder

#: Field names with their place in the tree.
_PLACES: Mapping[str, tuple[str, ...]] = {
    "path": ("path",),
    "controlnet": ("controlnet",),
    "base": ("base",),
    "vae": ("vae", "path"),
    "text_encoder": ("text_encoder",),
    "text_encoder_2": ("text_encoder_2",),
    "text_encoder_3": ("text_encoder_3",),
    "transformer": ("transformer",),
    "unet": ("unet",),
    "loras": ("loras",),
    "chat_template": ("text", "chat_template"),
}


def model_paths(model: Tree) -> dict[str, str]:
    """Return the paths that are set, by field."""
    found = {}
    for field, place in _PLACES.items():
        node: Any = model
        for key in place:
            node = node.get(key) if isinstance(node, dict) else None
        if node:
            found[field] = str(node)
    return found


def local_paths(model: Tree) -> dict[str, str]:
    """Return the paths of files and folders, by field, without built-in models and hub ids."""
    return {
        field: path
        for field, path in model_paths(model).items()
        if builtin_folder(path) is None and not is_hub_id(path)
    }


def set_path(model: Tree, field: str, path: str) -> None:
    """Change one path in the tree."""
    *sections, key = _PLACES[field]
    for section in sections:
        model = model[section]
    model[key] = path


def make_absolute(model: Tree) -> None:
    """Make relative paths absolute: elsewhere, one would look like a hub id."""
    for field, path in local_paths(model).items():
        set_path(model, field, str(Path(path).absolute()))
