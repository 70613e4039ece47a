"""Finds what is wrong with the files of a model, without loading it: missing, cut short, not safetensors.

Each problem is a sentence with the file and the way out. A hub id is not checked: its files are somewhere else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.model_parts import BUILTIN_DIR, builtin_folder
from configs.model_settings import Model
from configs.safetensors_file import InvalidFile, check_safetensors, explain_start, open_regular
from configs.user_engine_source import engine_problems

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
#: Parts that Muster leaves out for some pipelines and settings.
_OPTIONAL = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
_OTHER_WEIGHTS = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".h5")
_VARIANT = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)\.(?!safetensors)([A-Za-z0-9_]+)[.-].*safetensors"
)
#: Of a language model in OpenVINO's format.
_OPENVINO_FILES = ("openvino_model.xml", "openvino_model.bin", "config.json")
_MAX_INDEX_BYTES = 64 << 20
#: Vocabularies may be larger; reading those would delay a start.
_MAX_PARSED_BYTES = 1 << 20


def is_hub_id(path: str) -> bool:
    """Return whether the path names a model of the hub: nothing of that name is on this machine."""
    try:
        return bool(_HUB_ID.fullmatch(path)) and not path.endswith(".safetensors") and not Path(path).exists()
    except OSError:  # there is something that may not be read
        return False


def checkpoint_problems(model: Model) -> list[str]:
    """Return what keeps the model from being loaded, as far as its files show it."""
    try:
        return _problems(model)
    except OSError as error:
        return [f"{error.filename or model.path} cannot be read: {error.strerror}"]


def _problems(model: Model) -> list[str]:
    """Raises `OSError` for a file that cannot be read."""
    if model.engine == "sim":
        return []
    if model.task == "call":
        return list(engine_problems(model.engine, model.path, model.options))
    if model.task == "text":
        return list(_language_model_problems(model))
    problems = list(_path_problems(model.path, model))
    if model.controlnet is not None and not is_hub_id(model.controlnet):
        problems += _controlnet_problems(Path(model.controlnet))
    if model.loras is not None:
        problems += _folder_problems(model.loras, "loras")
    replaced = {"base": model.base} if model.base is not None else {}
    if model.vae.preview not in ("auto", "off"):
        replaced["vae.preview"] = model.vae.preview
    for name, path in (replaced | model.replaced_parts).items():
        if builtin_folder(path) is None and not is_hub_id(path):
            problems += _replacement_problems(name, Path(path))
    if model.revision is not None and not is_hub_id(model.path) and not is_hub_id(model.base or ""):
        problems.append(f"revision: {model.path} is not a hub id, and only those have revisions")
    return problems


def _replacement_problems(name: str, place: Path) -> Iterator[str]:
    if place.is_file() and name == "base":
        yield f"base: {place} is a file, but it must be a folder or a hub id"
    elif place.is_file():
        for problem in _single_file_problems(place):
            yield f"{name}: {problem}"
    elif not place.is_dir():
        yield f"{name}: no such folder or file: {place}{_where(place)}"
    elif name == "base" and not (place / "model_index.json").is_file():
        yield f"base: {place} has no model_index.json{_instead(place)}"


def _path_problems(path: str, model: Model) -> Iterator[str]:
    if (folder := builtin_folder(path)) is not None:
        yield from _builtin_problems(folder, "model_index.json")
        return
    if is_hub_id(path):
        return
    place = Path(path)
    if place.is_dir():
        yield from _pipeline_problems(place, model)
    elif place.is_file():
        yield from _single_file_problems(place)
    elif place.exists():
        yield f"{path} is neither a folder nor a regular file"
    else:
        yield f"no such folder or file: {path}{_where(place)}"


def _builtin_problems(folder: Path, index: str) -> Iterator[str]:
    """`index`: the file that every model of the kind has."""
    name = folder.name
    if folder.parent == BUILTIN_DIR and (folder / index).is_file():
        return
    if (folder / "config.json").is_file():
        yield f"built-in model {name!r} is a language model; set engine: text"
    elif (folder / "model_index.json").is_file():
        yield f"built-in model {name!r} generates images; set engine: diffusion"
    else:
        there = sorted(file.parent.name for file in BUILTIN_DIR.glob(f"*/{index}"))
        yield f"no built-in model {name!r}; built in: {', '.join(there)}"


def _language_model_problems(model: Model) -> Iterator[str]:
    """Check a folder in transformers' layout, or for `openvino` in OpenVINO's."""
    path, place = model.path, Path(model.path)
    folder = builtin_folder(path)
    if folder is not None or is_hub_id(path):
        problems = [] if folder is None else list(_builtin_problems(folder, "config.json"))
        if model.engine == "openvino" and not problems:
            problems.append(f"{path}: engine openvino loads a .gguf file, or a folder in OpenVINO's format")
        yield from problems
    elif not place.exists():
        yield f"no such folder or file: {path}{_where(place)}"
    elif place.is_file() and place.suffix != ".gguf":
        yield f"{path} is not supported: a language model is a folder, a hub id or a .gguf file"
    elif place.is_file() and model.engine != "openvino":
        yield f"{path}: engine {model.engine} loads a folder or a hub id; .gguf files are for engine openvino"
    elif place.is_dir() and model.engine == "openvino":
        yield from _folder_problems(place, "path")
        yield from _openvino_problems(place)
    elif place.is_dir():
        yield from _folder_problems(place, "path")
        if (place / "model_index.json").exists():
            yield f"{place} is a checkpoint in diffusers format; set engine: diffusion"
        elif not (place / "config.json").exists():
            yield f"{place} has no config.json{_instead(place)}"
        else:
            yield from _part_problems(place, place / "config.json", model.variant)


def _openvino_problems(folder: Path) -> Iterator[str]:
    """Check a folder that `optimum-cli export openvino` wrote."""
    missing = [name for name in _OPENVINO_FILES if not (folder / name).is_file()]
    if missing and (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        yield f"{folder} is in transformers' format: use engine text or vllm, or `optimum-cli export openvino`"
    elif missing:
        yield f"{folder} has no {missing[0]}; engine openvino loads a .gguf file, or a folder in OpenVINO's format"


def _where(place: Path) -> str:
    """Return where a relative path was looked for."""
    return "" if place.is_absolute() else f" (in {Path.cwd()})"


def _folder_problems(folder: Path, what: str) -> Iterator[str]:
    if not folder.is_dir():
        yield f"{what}: no such folder: {folder}"
    elif not os.access(folder, os.R_OK | os.X_OK):
        yield f"{what}: {folder} cannot be read by this user; change its permissions"


def _single_file_problems(file: Path) -> Iterator[str]:
    if file.suffix != ".safetensors":
        yield f"{file} is not supported: single files must be .safetensors; convert it, or use the model's folder"
        return
    try:
        names = check_safetensors(file)
    except InvalidFile as error:
        yield str(error)
        return
    if not names:
        yield f"{file} holds no weights; download it again"
    elif all("lora" in name.lower() or name.endswith(".alpha") for name in names):
        yield f"{file} holds a LoRA adapter, not a checkpoint; put it in the folder that `loras` names"


def _pipeline_problems(folder: Path, model: Model) -> Iterator[str]:
    """Check a folder in diffusers' layout."""
    if not os.access(folder, os.R_OK | os.X_OK):
        yield f"{folder} cannot be read by this user; change its permissions"
        return
    index_file = folder / "model_index.json"
    if not index_file.exists():
        yield f"{folder} is not a checkpoint in diffusers format: it has no model_index.json{_instead(folder)}"
        return
    try:
        index = _read_json(index_file)
    except InvalidFile as error:
        yield str(error)
        return
    if not isinstance(index.get("_class_name"), str):
        yield f"{index_file} names no pipeline (_class_name); download the model again"
    for part, value in index.items():
        named = isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
        left_out = part in _OPTIONAL and (model.safety_checker == "off" or part == "image_encoder")
        if named and not part.startswith("_") and not left_out:
            yield from _part_problems(folder / part, index_file, model.variant)


def _instead(folder: Path) -> str:
    """Say what the folder holds, if that is something else."""
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "adapter_config.json").exists():
        return "; it holds an adapter: put its .safetensors file in the folder that `loras` names"
    if (folder / "config.json").exists():
        return "; it is one part of a pipeline, or a model of another kind: give the folder above it"
    if files:
        return f"; to load one file, set path to {files[0]}"
    found = sorted(index.parent for index in folder.glob("*/model_index.json"))
    return f"; did you mean {found[0]}?" if found else ""


def _part_problems(folder: Path, index: Path, variant: str | None) -> Iterator[str]:
    if not folder.is_dir():
        yield f"{folder} is missing, but {index} names it; download the model again"
        return
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            continue
        if file.exists() and not file.is_file() and not file.is_dir():  # a library would wait for a pipe
            yield f"{file} is not a regular file; download it again"
        elif file.suffix == ".json" and not file.name.endswith(".index.json"):
            if file.stat().st_size > _MAX_PARSED_BYTES:
                continue
            try:
                _read_json(file)
            except InvalidFile as error:
                yield str(error)
    if (folder / "config.json").exists():  # a model: tokenizers and schedulers have other files
        yield from _weight_problems(folder, variant)


def _controlnet_problems(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"controlnet: no such folder: {folder}{_where(folder)}"
    elif not (folder / "config.json").exists():
        yield f"controlnet: {folder} has no config.json"
    else:
        yield from _weight_problems(folder, None)


def _weight_problems(folder: Path, variant: str | None) -> Iterator[str]:
    """Check the weight files of one part."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        other = sorted(file for file in folder.iterdir() if file.suffix in _OTHER_WEIGHTS)
        if other:
            yield f"{other[0]} is not safetensors, and only safetensors are loaded; convert the model"
        else:
            yield f"{folder} has no weights (*.safetensors); download the model again"
        return
    variants = {found[1] if (found := _VARIANT.match(file.name)) else None for file in files}
    if variant is None and None not in variants:
        [first, *_] = sorted(str(each) for each in variants)
        yield f"{folder} has weights of variant {first} only; set variant: {first}"
        return
    wanted = variant if variant in variants else None
    own = [file for file in files if (match[1] if (match := _VARIANT.match(file.name)) else None) == wanted]
    for shard_index in sorted(folder.glob("*.safetensors.index*.json")):
        yield from _missing_shards(shard_index)
    for file in own:
        try:
            check_safetensors(file)
        except InvalidFile as error:
            yield str(error)


def _missing_shards(index: Path) -> Iterator[str]:
    try:
        shards = _read_json(index).get("weight_map")
    except InvalidFile as error:
        yield str(error)
        return
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing and len(missing) < len(names):
        yield f"{index.parent / missing[0]} is missing ({len(missing)} of {len(names)} files); download the model again"


def _read_json(file: Path) -> Mapping[str, Any]:
    """Return the object. Raises `InvalidFile`, or `OSError` if it cannot be read."""
    with open_regular(file) as stream:
        data = stream.read(_MAX_INDEX_BYTES)
    if reason := explain_start(data[:512]):
        raise InvalidFile(f"{file} {reason}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{file} is not valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise InvalidFile(f"{file} is not a JSON object; download it again")
    return value
