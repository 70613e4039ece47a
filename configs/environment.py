"""Reads settings from `MUSTER_*` variables: `MUSTER_SERVER__PORT=9000` sets `server.port`. Pure.

A list or a section is JSON; a list of texts may also be separated by commas. An empty variable is as good as none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from configs.fields import (
    Tree,
    accepts_null,
    annotation_at,
    field_path,
    list_item,
    mapping_value,
    section_of,
    with_field_names,
)
from configs.text import closest

PREFIX = "MUSTER_"
#: Environment variable with a client's API key. It is not a setting.
CLIENT_KEY = "MUSTER_KEY"

#: What Kubernetes sets for each Service, and Docker for each link, if its name begins with `muster`.
_PLATFORM_NAME = re.compile(
    r"MUSTER(_[A-Z0-9]+)*?_"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR|PORT_START|PORT_END))?"
    r"|ENV_\w+)"
)
_PLATFORM_PORT = re.compile(r"MUSTER(_[A-Z0-9]+)*?_PORT")
_PLATFORM_LINK = re.compile(r"MUSTER(_[A-Z0-9]+)*?_NAME")


class EnvironmentProblem(NamedTuple):
    """A variable that cannot be used, and why."""

    name: str
    value: str
    message: str


class EnvironmentValues(NamedTuple):
    """Settings of the environment, and the variable of each by its path."""

    values: Tree
    places: Mapping[tuple[str, ...], str]
    problems: Sequence[EnvironmentProblem] = ()


class _InvalidVariable(ValueError):
    """The variable cannot be used. The text says why."""


def read_variables(settings: type[BaseModel], environ: Mapping[str, str], models: Sequence[str]) -> EnvironmentValues:
    """Return what the variables set. `models` are the names of the models in the file."""
    values: Tree = {}
    places: dict[tuple[str, ...], str] = {}
    problems = []
    own = [name for name in environ if name.startswith(PREFIX) and name != CLIENT_KEY and environ[name].strip()]
    # Short names first: MUSTER_SERVER='{...}' is a whole section, in which other variables then replace values.
    for name in sorted(own, key=lambda name: (name.count("__"), name)):
        text = environ[name].strip()
        if _is_of_platform(name, text):
            continue
        try:
            path = _path(settings, name, list(dict.fromkeys([*models, *values.get("models", {})])))
            value = with_field_names(annotation_at(settings, path), _parse(annotation_at(settings, path), text))
            _refuse_duplicate(name, places.get(tuple(path)))
        except _InvalidVariable as error:
            problems.append(EnvironmentProblem(name, text, str(error)))
            continue
        _put(values, path, value)
        places |= {(*path, *part): name for part in _leaves(value)}
    return EnvironmentValues(values, places, problems)


def _refuse_duplicate(name: str, other: str | None) -> None:
    """Raises `_InvalidVariable` if two variables set the same value. A variable inside a section replaces its part."""
    if other is not None and other.count("__") == name.count("__"):
        raise _InvalidVariable(f"sets the same as {other}; keep one of them")


def _is_of_platform(name: str, value: str) -> bool:
    return bool(
        _PLATFORM_NAME.fullmatch(name)
        or (_PLATFORM_PORT.fullmatch(name) and re.match(r"(tcp|udp|sctp)://", value))
        or (_PLATFORM_LINK.fullmatch(name) and value.startswith("/"))
    )


def _path(settings: type[BaseModel], name: str, models: Sequence[str]) -> list[str]:
    """Return the keys that the variable's name stands for. Raises `_InvalidVariable`."""
    first, *rest = name.removeprefix(PREFIX).split("__")
    path = [first.lower()]
    if path == ["models"] and rest:
        path.append(_model(rest.pop(0), models))
    path = field_path(settings, path + [part.lower() for part in rest])
    if annotation_at(settings, path) is None:
        near = closest(name.upper(), _known_names(settings, models))
        raise _InvalidVariable(f"no such setting; {f'did you mean {near}?' if near else 'see --print-config'}")
    return path


def _model(part: str, models: Sequence[str]) -> str:
    """Return the model that this part of a variable's name means. Raises `_InvalidVariable`."""
    meant = [name for name in models if name == part] or [name for name in models if _upper(name) == _upper(part)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise _InvalidVariable(f"this may mean the models {' and '.join(meant)}; set it in the file")
    near = closest(part.lower(), [name.lower() for name in models])
    hint = f"did you mean {PREFIX}MODELS__{_upper(near)}__...? " if near else ""
    raise _InvalidVariable(
        f"no model {part!r}; {hint}configured: {', '.join(models)}. "
        "A model is added in the file, or by MUSTER_MODELS as a JSON object"
    )


def _upper(name: str) -> str:
    """Return the name as in a variable, which has letters, digits and underscores only."""
    return re.sub(r"\W", "_", name, flags=re.ASCII).upper()


def _known_names(section: type[BaseModel], models: Sequence[str], prefix: str = PREFIX) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner, item = section_of(field.annotation), section_of(mapping_value(field.annotation))
        variable = f"{prefix}{name.upper()}"
        if inner is not None:
            yield from _known_names(inner, (), f"{variable}__")
        elif item is not None:
            for model in models:
                yield from _known_names(item, (), f"{variable}__{_upper(model)}__")
        else:
            yield variable


def _parse(annotation: Any, text: str) -> Any:
    """Return the value in the form that a file would give. Raises `_InvalidVariable`."""
    if text == "null" and accepts_null(annotation):
        return None
    item = list_item(annotation)
    if item is not None:
        if section_of(item) is None and not text.startswith(("[", "{")):
            return [part.strip() for part in text.split(",") if part.strip()]
        form = "[...], a JSON list" if section_of(item) else 'a JSON list, such as ["a", "b"], or a,b'
        return _json(text, list, form)
    if section_of(annotation) is not None or mapping_value(annotation) is not None:
        return _json(text, dict, 'a JSON object, such as {"key": 1}')
    return text


def _json(text: str, kind: type, form: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _InvalidVariable(f"must be {form}: {error}") from None
    if not isinstance(value, kind):
        raise _InvalidVariable(f"must be {form}")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Tree:
    tree: Tree = {}
    for key, value in pairs:
        if key in tree:
            raise _InvalidVariable(f"the key {key!r} is there twice")
        tree[key] = value
    return tree


def _put(tree: Tree, path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        inner = tree.get(part)
        tree[part] = inner = inner if isinstance(inner, dict) else {}
        tree = inner
    tree[path[-1]] = value


def _leaves(value: Any) -> Iterator[tuple[str, ...]]:
    yield ()
    if isinstance(value, dict):
        for key, inner in value.items():
            for path in _leaves(inner):
                yield key, *path
