"""Reads `Settings` from a YAML file, the environment and the command line; reports every mistake with its place.

`MUSTER_*` variables (`MUSTER_SERVER__PORT=9000`) override the file, and the command line overrides both.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic.types import JsonValue
from pydantic_core import ErrorDetails

from configs.environment import read_variables
from configs.fields import Tree, annotation_at, field_path, section_of, with_field_names
from configs.scaling import FIELDS_OF_MODELS, NAMES_ELSEWHERE
from configs.settings import Settings
from configs.text import clip, closest, escaped
from configs.user_engine import with_absolute_paths
from configs.yaml_file import InvalidYaml, KeyPath, read_yaml_file

#: In place of pydantic's sentences with words of Python, such as `tuple`, by the type of the error.
_PLAIN_MESSAGES = {
    "extra_forbidden": "unknown key",
    "dict_type": "must be a section: `key: value` lines",
    "model_type": "must be a section: `key: value` lines",
    "path_type": "must be the path of a file or folder",
    "tuple_type": "must be a list",
}
_PLAIN_WORDS = {"Input should be": "must be", "String should": "must", "Field required": "is required"}
DEFAULT_FILE = Path(__file__).with_name("default.yaml")


#: The value of a problem that is null in the file.
NULL: JsonValue = {}


class Problem(NamedTuple):
    """A mistake in a configuration: place, key, value and explanation. None is no value to show."""

    where: str
    key: str
    value: JsonValue
    message: str

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {'null' if self.value is NULL else clip(repr(self.value), 80)}"
        return f"{escaped(self.where)}: {escaped(clip(self.key, 200))}{shown}: {self.message}"


class ConfigError(ValueError):
    """The configuration is invalid. `problems` lists all mistakes."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class ConfigSource(NamedTuple):
    """An origin of settings. `places` maps paths to a line of the file, or to an environment variable."""

    name: str
    values: Tree
    places: Mapping[KeyPath, str] = {}


def load(file: Path | None = None, overrides: Tree | None = None, *, needs_models: bool = True) -> Settings:
    """Read and validate the configuration. Raises `ConfigError`.

    `overrides` are the settings of the command line. `file` replaces the default file completely. Without
    `needs_models`, a file that names no models gets those of the default file.
    """
    return _validated(_read_sources(file, overrides, needs_models=needs_models))


def replaced_limits(file: Path | None = None, overrides: Tree | None = None) -> list[str]:
    """Return a sentence for each number of workers of a model that one for every model replaces. Raises `ConfigError`.

    An option or variable for every model is meant to replace what the file says of one: that is not listed.
    """
    sources = _read_sources(file, overrides)
    settings = _validated(sources)
    general = {name: getattr(settings, name) for name in ("min_workers", "max_workers")}
    found = []
    for model, own in ((name, each.scaling) for name, each in settings.models.items()):
        applied = settings.scaling(model)
        for name in ("min_workers", "max_workers", "initial_workers"):
            path, value, other = ("models", model, "scaling", name), getattr(own, name), getattr(applied, name)
            causes = [
                f"{key} is {given} for every model ({_origin((key,), sources)})"
                for key, given in general.items()
                if given is not None and _precedence((key,), sources) <= _precedence(path, sources)
            ]
            if value != other and causes:
                place = f"{_origin(path, sources)}: {'.'.join(path)} = {value}"
                found.append(f"{escaped(place)}: {other} is used, because {' and '.join(causes)}")
    return found


def _read_sources(file: Path | None, overrides: Tree | None, *, needs_models: bool = True) -> list[ConfigSource]:
    """Return all origins of settings in ascending precedence. Raises `ConfigError`."""
    from_file = _with_engine_paths(read_yaml(file or DEFAULT_FILE), (file or DEFAULT_FILE).parent)
    if not needs_models and "models" not in from_file.values:
        usual = read_yaml(DEFAULT_FILE).values["models"]
        from_file = from_file._replace(values={**from_file.values, "models": usual})
    models = from_file.values.get("models")
    from_environment = read_environment(list(models) if isinstance(models, dict) else [])
    return [from_file, from_environment, ConfigSource("command line", overrides or {})]


def _validated(sources: list[ConfigSource]) -> Settings:
    """Raises `ConfigError`."""
    merged: Tree = {}
    for source in sources:
        merged = _merge(merged, source.values)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, merged, sources)) from None


def read_yaml(file: Path) -> ConfigSource:
    """Return the file's settings with the line of each. Raises `ConfigError`."""
    try:
        values, lines = read_yaml_file(file)
    except OSError as error:
        raise ConfigError([Problem(str(file), "file", None, f"cannot be read: {error.strerror or error}")]) from None
    except InvalidYaml as error:
        place = f"{file}:{error.line}" if error.line else str(file)
        raise ConfigError([Problem(place, "file", None, error.message)]) from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError([Problem(str(file), "file", None, "must contain `key: value` lines at its top level")])
    places = {tuple(field_path(Settings, path)): f"{file}:{line}" for path, line in lines.items()}
    return ConfigSource(str(file), with_field_names(Settings, values), places)


def read_environment(models: Sequence[str] = ()) -> ConfigSource:
    """Return the settings in `MUSTER_*` variables, for these models. Raises `ConfigError` for unknown variables."""
    values, places, problems = read_variables(Settings, os.environ, models)
    if problems:
        raise ConfigError([Problem("environment", *problem) for problem in problems])
    return ConfigSource("environment", values, {key: f"environment: {name}" for key, name in places.items()})


def _with_engine_paths(source: ConfigSource, folder: Path) -> ConfigSource:
    """Resolve the paths of user-written engines, which are relative to the configuration file."""
    models = source.values.get("models")
    if not isinstance(models, dict):
        return source
    resolved = {
        name: with_absolute_paths(model, folder) if isinstance(model, dict) else model for name, model in models.items()
    }
    return source._replace(values=source.values | {"models": resolved})


def _merge(base: Tree, over: Tree) -> Tree:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError, merged: Tree, sources: list[ConfigSource]) -> list[Problem]:
    return [
        Problem(_origin(_keys(key), sources), _joined(key) or "configuration", value, message)
        for key, value, message in _mistakes(error, merged, Settings)
    ]


def section_problems(error: ValidationError, values: Tree, section: type[BaseModel], where: str = "") -> list[str]:
    """Return what is wrong in the values of a section, as texts with place, key, value and what is allowed."""
    place = f"{where}: " if where else ""
    return [
        place + (str(Problem("", _joined(key), value, text)).removeprefix(": ") if key else text)
        for key, value, text in _mistakes(error, values, section)
    ]


class _Mistake(NamedTuple):
    key: tuple[str | int, ...]
    value: JsonValue
    message: str


def _mistakes(error: ValidationError, values: Tree, root: type[BaseModel]) -> list[_Mistake]:
    """Return one mistake per key. A union of types causes several pydantic errors for the same value."""
    found: dict[tuple[str | int, ...], tuple[JsonValue, list[str]]] = {}
    for item in error.errors():
        path = _existing_path(values, item["loc"])
        missing = item["type"] == "missing"
        key = (*path, str(item["loc"][-1])) if missing else tuple(path)
        message = plain_message(item)
        if item["type"] == "extra_forbidden":
            section = section_of(annotation_at(root, path[:-1]))
            message = unknown_key(str(path[-1]), list(section.model_fields) if section is not None else [])
        value = None if missing or isinstance(item["input"], dict | BaseModel) else item["input"]
        if item["input"] is None and path and not missing:
            value = NULL
        found.setdefault(key, (value, []))[1].append(message)
    return [_Mistake(key, value, _alternatives(texts)) for key, (value, texts) in found.items()]


def _alternatives(messages: Sequence[str]) -> str:
    """Join what each type of a union asks for: `must be at most 5 or 'auto'`."""
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(each.removeprefix("must be ") for each in others)])


def plain_message(problem: ErrorDetails) -> str:
    """Return what is wrong without pydantic's words, for people who write YAML."""
    message = _PLAIN_MESSAGES.get(problem["type"], problem["msg"])
    if problem["type"] == "too_short":
        count = problem["ctx"]["min_length"]
        return f"must have at least {count} {'entry' if count == 1 else 'entries'}"
    for sentence, words in _PLAIN_WORDS.items():
        message = message.replace(sentence, words)
    return message.removeprefix("Value error, ")


def _existing_path(tree: Any, location: tuple[int | str, ...]) -> list[str | int]:
    """Return the keys and indexes of pydantic's location, without its names of union branches."""
    path: list[str | int] = []
    for part in location:
        if isinstance(tree, dict) and part in tree:
            path.append(str(part))
        elif isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree):
            path.append(part)
        else:
            continue
        tree = tree[part]
    return path


def _keys(path: Sequence[str | int]) -> KeyPath:
    """Return the part of the path that has a line of its own: that in front of a list."""
    return tuple(str(part) for part in itertools.takewhile(lambda part: isinstance(part, str), path))


def _joined(path: Sequence[str | int]) -> str:
    """Return the path as a text, such as `models.x.loras[2]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _origin(path: KeyPath, sources: list[ConfigSource]) -> str:
    """Return the source of highest precedence that sets the key, with the line if it is a file."""
    number = _precedence(path, sources)
    return sources[0].name if number < 0 else sources[number].places.get(path, sources[number].name)


def _precedence(path: KeyPath, sources: list[ConfigSource]) -> int:
    """Return the number of the last source that sets the key; -1 if none does."""
    for number in range(len(sources) - 1, -1, -1) if path else ():
        node: Any = sources[number].values
        parts = list(path)
        while parts and isinstance(node, dict) and parts[0] in node:
            node = node[parts.pop(0)]
        if not parts:
            return number
    return -1


def unknown_key(key: str, allowed: list[str]) -> str:
    """Return what to say about a key that does not exist: the one that is probably meant, and all that are allowed."""
    name = key.split("__", maxsplit=1)[0]
    other = NAMES_ELSEWHERE.get(name, "")
    if other in FIELDS_OF_MODELS and other not in allowed:
        return f"unknown key; did you mean `{other}` of the model?"
    near = other if other.split(".")[0] in allowed else closest(name, allowed)
    hint = f"did you mean `{near}`? " if near else ""
    return f"unknown key; {hint}allowed: {', '.join(allowed)}"
