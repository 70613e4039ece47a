"""The settings of the server's models on this machine: what they name is looked up where this machine allows it.

A path of the server means nothing here. A folder, file or engine is found by its last part in `agent.model_folders`,
or where it was fetched to. Nothing else of this machine can be named by the server.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from configs.model_parts import builtin_folder
from configs.model_paths import model_paths, set_path
from configs.model_settings import Model
from configs.sections import Agent, Workers
from configs.settings import ModelName, Settings
from configs.text import clip
from configs.user_engine import engine_reference
from wire.agents import ModelSettings

_MAX_REASON = 500
#: It names a folder of fetched files.
_MODEL_NAME: TypeAdapter[str] = TypeAdapter(ModelName)


class NotHere(Exception):
    """The machine has no such file, or does not allow it. The text says what to do."""


class LocalModels(NamedTuple):
    """The models as this machine can run them."""

    settings: Settings
    #: Models whose files are all on this machine.
    present: frozenset[str]
    #: Why others cannot run here.
    unusable: Mapping[str, str]
    #: Those of them whose files may be fetched, in the order of the configuration.
    absent: tuple[str, ...]


def local_models(own: Settings, received: ModelSettings, fetched: Path) -> LocalModels:
    """Return the received models with the paths of this machine. `fetched` holds a folder per fetched model.

    Raises `ValueError` if the settings of the workers are of another version.
    """
    models: dict[str, Model] = {}
    unusable: dict[str, str] = {}
    absent: list[str] = []
    present = set()
    for name, text in received.models.items():
        try:
            _MODEL_NAME.validate_python(name)
            tree = json.loads(text)
            missing = _resolve(tree, own.agent, fetched / folder_name(name))
            model = Model.model_validate(tree)
        except NotHere as error:
            unusable[name] = f"models.{name}.{error}"
            continue
        except (ValidationError, ValueError, TypeError, AttributeError) as error:
            unusable[name] = clip(f"models.{name} is not valid on this machine: {error}", _MAX_REASON)
            continue
        if missing:
            unusable[name] = f"models.{name}.{missing}"
            absent.append(name)
            continue
        models[name] = model
        if model.engine == "sim" or all(_is_at_hand(path) for path in model_paths(tree).values()):
            present.add(name)
    try:
        workers = own.workers.model_copy(update=dict(Workers.model_validate_json(received.workers)))
    except ValidationError as error:
        raise ValueError(clip(str(error), _MAX_REASON)) from None
    settings = own.model_copy(update={"models": models, "workers": workers})
    return LocalModels(settings, frozenset(present), unusable, tuple(absent))


def folder_name(model: str) -> str:
    """Return the name of the folder of a fetched model: names of models have slashes."""
    return model.replace("/", "--")


def _resolve(tree: dict[str, Any], allowed: Agent, fetched: Path) -> str:
    """Replace the paths in the tree. Return what is missing and may be fetched; raises `NotHere` for the rest."""
    python = tree.get("python")
    if python is not None and Path(python) not in allowed.interpreters:
        raise NotHere(f"python is {python}, which agent.interpreters of this machine does not list")
    if ":" in tree.get("engine", ""):
        _resolve_engine(tree, allowed)
        return ""
    missing = ""
    for field, path in model_paths(tree).items():
        if (
            builtin_folder(path) is not None or not Path(path).is_absolute()
        ):  # the server sends absolute paths and hub ids
            continue
        found = _find(path, allowed, fetched / field)
        if found is None:
            missing = missing or (
                f"{field} is {path} on the server, and there is nothing of this name in agent.model_folders "
                f"({', '.join(map(str, allowed.model_folders)) or 'none'})"
            )
        else:
            set_path(tree, field, str(found))
    return missing


def _resolve_engine(tree: dict[str, Any], allowed: Agent) -> None:
    """Find the engine of a user: a Python file in a folder of this machine, or a module that it lists."""
    reference = engine_reference(tree["engine"])
    if reference.is_file:
        found = _find(reference.place, allowed, None)
        if found is None:
            raise NotHere(f"engine is {reference.place}, and no file of this name is in agent.model_folders")
        tree["engine"], tree["path"] = f"{found}:{reference.class_name}", str(found.parent)
        return
    if tree["engine"] not in allowed.engines:
        raise NotHere(f"engine is {tree['engine']}, which agent.engines of this machine does not list")
    folder = _find(tree.get("path", ""), allowed, None) if tree.get("path") else None
    tree["path"] = str(folder) if folder is not None else str(Path.cwd())


def _find(path: str, allowed: Agent, fetched: Path | None) -> Path | None:
    """Return the file or folder of this machine for a path of the server; None if there is none."""
    name = Path(path).name
    for folder in allowed.model_folders:
        whole = Path(path)
        if whole.is_absolute() and whole.exists() and whole.resolve().is_relative_to(folder.resolve()):
            return whole
        if name and name not in (".", "..") and (folder / name).exists():
            return folder / name
    if fetched is not None and (fetched.parent / "complete").exists():
        content = fetched / name
        return content if content.exists() else None
    return None


def _is_at_hand(path: str) -> bool:
    """Return whether nothing has to be downloaded for it."""
    if builtin_folder(path) is not None or Path(path).exists():
        return True
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return any((cache / f"models--{path.replace('/', '--')}" / "snapshots").glob("*"))
