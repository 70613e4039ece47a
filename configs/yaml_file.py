"""Reads and writes YAML by the core schema of YAML 1.2: `off`, `yes`, `12:30` and `1_000` are texts, `0o17` is octal.

PyYAML supplies the syntax. Its own rules for plain scalars are those of YAML 1.1. What it accepts silently is refused
here: duplicate keys, and aliases that expand without bound.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from configs.files import read_regular_file

MAX_BYTES = 1 << 20
#: Maximum number of values after the expansion of aliases, and of levels.
_MAX_VALUES = 200_000
_MAX_DEPTH = 50

#: The keys from the top of a document to a value.
KeyPath = tuple[str, ...]

_TAG = "tag:yaml.org,2002:"
_CORE_SCALARS = [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
]


class InvalidYaml(ValueError):
    """The text is not valid YAML. `line` counts from 1; 0 if it concerns no line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.line = line
        self.message = message


class YamlDocument(NamedTuple):
    """The value of a YAML text, and the line of each key by its path."""

    value: Any
    lines: Mapping[KeyPath, int]


class _CoreLoader(yaml.SafeLoader):
    """Knows the types of the core schema and merge keys (`<<`), and nothing else."""

    def check(self, node: yaml.Node) -> dict[KeyPath, int]:
        """Return the line of each key. Raises `InvalidYaml` for duplicate keys and endless or huge aliases."""
        self._values = 0
        lines: dict[KeyPath, int] = {}
        self._visit(node, (), lines, 0)
        return lines

    def _visit(self, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], depth: int) -> None:
        self._values += 1
        if self._values > _MAX_VALUES or depth > _MAX_DEPTH:
            what = f"{_MAX_DEPTH} levels" if depth > _MAX_DEPTH else f"{_MAX_VALUES:,} values"
            raise InvalidYaml(node.start_mark.line + 1, f"has more than {what}, with its aliases (*NAME) expanded")
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._visit(item, (), {}, depth + 1)
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                if key.tag == f"{_TAG}merge":
                    merged: dict[KeyPath, int] = {}
                    self._visit(value, path, merged, depth + 1)
                    lines.update({name: line for name, line in merged.items() if name not in lines})
                    continue
                _check_key(key, first)
                lines[*path, key.value] = key.start_mark.line + 1
                self._visit(value, (*path, key.value), lines, depth + 1)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(self.construct_scalar(node))
        try:
            if node.tag == f"{_TAG}float":
                return float(re.sub(r"\.(?=[ni])", "", text.lower()))
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError:
            raise InvalidYaml(node.start_mark.line + 1, "this number cannot be read") from None

    def construct_truth(self, node: yaml.ScalarNode) -> bool:
        return str(self.construct_scalar(node)).lower() == "true"


def _check_key(key: yaml.Node, first: dict[str, int]) -> None:
    """Note the key's line, and make the key a text. Raises `InvalidYaml` if the mapping has it already."""
    line = key.start_mark.line + 1
    if not isinstance(key, yaml.ScalarNode):
        raise InvalidYaml(line, "a key must be a plain text, not a list or a mapping")
    if key.value in first:
        raise InvalidYaml(line, f"the key `{key.value}` is there twice: first in line {first[key.value]}")
    first[key.value] = line
    key.tag = f"{_TAG}str"


class _CoreDumper(yaml.SafeDumper):
    """Quotes each text that a reader of YAML 1.1 or 1.2 would take for another type."""


# The base class has the rules of YAML 1.1.
_CoreLoader.yaml_implicit_resolvers = {}
for _name, _pattern, _starts in _CORE_SCALARS:
    _matcher = re.compile(rf"^(?:{_pattern})$")
    _CoreLoader.add_implicit_resolver(f"{_TAG}{_name}", _matcher, list(_starts))
    _CoreDumper.add_implicit_resolver(f"{_TAG}{_name}", _matcher, list(_starts))
_CoreLoader.add_implicit_resolver(f"{_TAG}merge", re.compile("^<<$"), ["<"])
_CoreLoader.yaml_constructors = {
    f"{_TAG}null": _CoreLoader.construct_yaml_null,
    f"{_TAG}bool": _CoreLoader.construct_truth,
    f"{_TAG}int": _CoreLoader.construct_number,
    f"{_TAG}float": _CoreLoader.construct_number,
    f"{_TAG}str": _CoreLoader.construct_yaml_str,
    f"{_TAG}seq": _CoreLoader.construct_yaml_seq,
    f"{_TAG}map": _CoreLoader.construct_yaml_map,
    None: _CoreLoader.construct_undefined,
}


def read_yaml_file(file: Path) -> YamlDocument:
    """Return the file's value. Raises `InvalidYaml`, or `OSError` if it cannot be read or is no regular file."""
    try:
        return parse_yaml(read_regular_file(file, MAX_BYTES))
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise InvalidYaml(0, f"is larger than {MAX_BYTES:,} bytes") from None
        raise


def parse_yaml(data: bytes | str) -> YamlDocument:
    """Return the value of the text; None if it is empty. Raises `InvalidYaml`."""
    text = data if isinstance(data, str) else _decode(data)
    try:
        loader = _CoreLoader(text)
        node = loader.get_single_node()
        if node is None:
            return YamlDocument(None, {})
        lines = loader.check(node)
        return YamlDocument(loader.construct_document(node), lines)
    except yaml.reader.ReaderError as error:
        raise InvalidYaml(
            text.count("\n", 0, error.position) + 1, f"has the control character 0x{_code(error.character):02x}"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InvalidYaml(mark.line + 1 if mark else 0, f"is not valid YAML: {_explain(error)}") from None
    except RecursionError:
        raise InvalidYaml(0, f"has more than {_MAX_DEPTH} levels") from None


def dump_yaml(tree: object) -> str:
    """Return the tree as YAML that `parse_yaml`, and a reader of YAML 1.1, reads as the same tree."""
    return yaml.dump(tree, Dumper=_CoreDumper, sort_keys=False)


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        raise InvalidYaml(0, "is UTF-32; save it as UTF-8")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidYaml(0, "is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidYaml(line, f"the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


def _code(character: int | str) -> int:
    return character if isinstance(character, int) else ord(character)


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be read"
    if "'\\t'" in problem:
        return "a tab stands where only spaces are allowed"
    if "expected a single document" in (error.context or ""):
        return "a second document begins (---); only one is allowed"
    return f"{error.context}: {problem}" if error.context else problem
