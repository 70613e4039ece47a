"""Reads `Settings` from a YAML file, the environment and the command line; reports every mistake with its place.

`MUSTER_*` variables (`MUSTER_SERVER__PORT=9000`) override the file, and the command line overrides both.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.types import JsonValue
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from configs.settings import Settings
from configs.text import clip

DEFAULT_FILE = Path(__file__).with_name("default.yaml")
ENV_PREFIX = "MUSTER_"
#: Environment variable with a client's API key. It is not a setting.
CLIENT_KEY = "MUSTER_KEY"
Tree = dict[str, Any]


class Problem(NamedTuple):
    """A mistake in a configuration: place, key, value and explanation."""

    where: str
    key: str
    value: JsonValue
    message: str

    def __str__(self) -> str:
        shown = "" if self.value is None else f" = {_shorten(self.value)}"
        return f"{self.where}: {self.key}{shown}: {self.message}"


class ConfigError(ValueError):
    """The configuration is invalid. `problems` lists all mistakes."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class ConfigSource(NamedTuple):
    """An origin of settings. `lines` maps dotted keys to line numbers; empty if it is not a file."""

    name: str
    values: Tree
    lines: Mapping[str, int] = {}


def load(file: Path | None = None, overrides: Tree | None = None) -> Settings:
    """Read and validate the configuration. Raises `ConfigError`.

    `overrides` are the settings of the command line. `file` replaces the default file completely.
    """
    sources = [read_yaml(file or DEFAULT_FILE), read_environment(), ConfigSource("command line", overrides or {})]
    merged: Tree = {}
    for source in sources:
        merged = _merge(merged, source.values)
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, merged, sources)) from None


def read_yaml(file: Path) -> ConfigSource:
    """Return the file's settings with the line of each. Raises `ConfigError`."""
    try:
        text = file.read_text(encoding="utf-8")
        values = yaml.safe_load(text) or {}
        lines = _line_numbers(yaml.compose(text, Loader=yaml.SafeLoader))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(file), "file", None, f"cannot be read: {error}")]) from None
    except yaml.YAMLError as error:
        raise ConfigError([Problem(str(file), "file", None, f"is not valid YAML: {error}")]) from None
    if not isinstance(values, dict):
        raise ConfigError([Problem(str(file), "file", None, "must contain `key: value` lines at its top level")])
    return ConfigSource(str(file), values, lines)


def read_environment() -> ConfigSource:
    """Return the settings in `MUSTER_*` variables. Raises `ConfigError` for a variable that is not a setting."""
    fields = {name.lower() for name in Settings.model_fields}
    unknown = [
        Problem("environment", name, os.environ[name], _suggest(name[len(ENV_PREFIX) :].lower(), sorted(fields)))
        for name in sorted(os.environ)
        if name.startswith(ENV_PREFIX)
        and name != CLIENT_KEY
        and name[len(ENV_PREFIX) :].lower().split("__")[0] not in fields
    ]
    if unknown:
        raise ConfigError(unknown)
    try:
        return ConfigSource("environment", EnvSettingsSource(Settings)())
    except SettingsError as error:
        raise ConfigError([Problem("environment", "MUSTER_*", None, str(error))]) from None


def _merge(base: Tree, over: Tree) -> Tree:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _line_numbers(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}{key.value}"
            lines[path] = key.start_mark.line + 1
            lines |= _line_numbers(value, f"{path}.")
    return lines


def _explain(error: ValidationError, merged: Tree, sources: list[ConfigSource]) -> list[Problem]:
    """Return one problem per key. A union of types causes several pydantic errors for the same value."""
    found: dict[str, tuple[JsonValue, list[str]]] = {}
    for item in error.errors():
        path = _existing_path(merged, item["loc"])
        missing = item["type"] == "missing"
        key = ".".join(map(str, item["loc"] if missing else path)) or "configuration"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = _suggest(str(path[-1]), _allowed_keys(path[:-1]))
        value = None if missing or isinstance(item["input"], dict | BaseModel) else item["input"]
        found.setdefault(key, (value, []))[1].append(message)
    return [
        Problem(_origin(key, sources), key, value, " or ".join(dict.fromkeys(messages)))
        for key, (value, messages) in found.items()
    ]


def _existing_path(tree: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of pydantic's location, without its names of union branches."""
    path: list[str] = []
    for part in location:
        if not isinstance(tree, dict) or part not in tree:
            break
        path.append(str(part))
        tree = tree[part]
    return path


def _origin(key: str, sources: list[ConfigSource]) -> str:
    """Return the source of highest precedence that sets the key, with the line if it is a file."""
    for source in reversed(sources):
        node: Any = source.values
        parts = key.split(".")
        while parts and isinstance(node, dict) and parts[0] in node:
            node = node[parts.pop(0)]
        if not parts:
            line = source.lines.get(key)
            return f"{source.name}:{line}" if line else source.name
    return sources[0].name


def _allowed_keys(path: list[str]) -> list[str]:
    section: Any = Settings
    for part in path:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[part].annotation
        else:  # the only mapping is `models`
            section = section.__args__[1]
    if isinstance(section, type) and issubclass(section, BaseModel):
        return list(section.model_fields)
    return []


def _suggest(key: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(key.split("__", maxsplit=1)[0], allowed, n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    return f"unknown key; {hint}allowed: {', '.join(allowed)}"


def _shorten(value: JsonValue) -> str:
    return clip(repr(value), 80)
