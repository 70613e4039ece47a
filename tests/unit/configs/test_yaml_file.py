"""YAML as the core schema of YAML 1.2 reads it, its bounds, and its error texts."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.yaml_file import MAX_BYTES, InvalidYaml, dump_yaml, parse_yaml, read_yaml_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(word, word) for word in ("off", "on", "yes", "no", "Off", "YES", "y", "n")],
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("010000", 10000),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("12:30:00", "12:30:00"),
        ("190:20:30", "190:20:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1e3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("2001-01-01", "2001-01-01"),
        ("=", "="),
        ("!!str 5", "5"),
        ("'off'", "off"),
    ],
)
def test_plain_scalar_has_its_1_2_type(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}").value["a"]
    assert (found, type(found)) == (value, type(value))


def test_keys_are_texts() -> None:
    assert parse_yaml("1: a\ntrue: b\nnull: c\noff: d").value == {"1": "a", "true": "b", "null": "c", "off": "d"}


def test_keys_have_lines_through_merges() -> None:
    document = parse_yaml("base: &base\n  x: 1\n  y: 2\nuse:\n  <<: *base\n  y: 3\n")
    assert document.value["use"] == {"x": 1, "y": 3}
    lines = document.lines
    assert [lines[key] for key in [("use",), ("use", "x"), ("use", "y"), ("base", "y")]] == [4, 2, 6, 3]


_LAUGHS = "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 40))])
_MERGES = "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))])


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: 1\nb: 2\na: 3", 3, "the key `a` is there twice: first in line 1"),
        ("s:\n  x: 1\n  'x': 2", 3, "first in line 2"),
        ("l: [{x: 1, x: 2}]", 1, "`x` is there twice"),
        ("1: a\n'1': b", 2, "twice"),
        ("a:\n\tb: 1", 2, "a tab stands where only spaces are allowed"),
        ("a: [1\nb: 2", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2", 2, "only one is allowed"),
        ("a: *b", 1, "undefined alias"),
        ("a: 1\nb: \x01", 2, "control character"),
        ("a: !!python/name:os.system", 1, "could not determine a constructor"),
        ("a: !!timestamp 2001-99-99", 1, "could not determine a constructor"),
        ("? [1]\n: 2", 1, "a key must be a plain text"),
        ("a: &a [*a]", 1, "more than 50 levels"),
        (f"a: {'[' * 60}{']' * 60}", 1, "more than 50 levels"),
        (f"a: {'9' * 5000}", 1, "this number cannot be read"),
        (f"a: {'[' * 5000}", 0, "levels"),
        (_LAUGHS, 1, "values, with its aliases"),
        (_MERGES, 2, "values, with its aliases"),
    ],
)
def test_invalid_yaml_has_a_line_and_a_reason(text: str, line: int, part: str) -> None:
    with pytest.raises(InvalidYaml) as refusal:
        parse_yaml(text)
    assert part in refusal.value.message
    assert refusal.value.line == line


@pytest.mark.parametrize(
    ("data", "line", "part"),
    [
        (b"a: 1\nb: \xff\n", 2, "0xff is not UTF-8"),
        ("a: ü".encode("latin-1"), 1, "not UTF-8"),
        ("a: 1".encode("utf-16"), 0, "is UTF-16; save it as UTF-8"),
        (b"#" * (MAX_BYTES + 1), 0, "is larger than"),
    ],
)
def test_bytes_that_cannot_be_read(tmp_path: Path, data: bytes, line: int, part: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(data)
    with pytest.raises(InvalidYaml, match=part) as refusal:
        read_yaml_file(file)
    assert refusal.value.line == line


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(link)
    for file, reason in {pipe: "not a regular file", Path("/dev/zero"): "not a regular file", link: "links"}.items():
        with pytest.raises(OSError, match=reason):
            read_yaml_file(file)


def test_byte_order_mark_and_crlf_are_no_content(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb:\r\n  c: x\r\n")
    document = read_yaml_file(file)
    assert (document.value, document.lines["b", "c"]) == ({"a": 1, "b": {"c": "x"}}, 3)


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.from_regex(r"[-+.:_0-9a-fox]{1,8}", fullmatch=True)
    | st.sampled_from(["off", "yes", "0o17", "1e3", "12:30:00", "010", "~", "", "<<", "=", "1_0", "null"])
)


@settings(max_examples=60)
@given(tree=st.dictionaries(st.text(), st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3))))
def test_written_yaml_is_read_equal(tree: dict[str, object]) -> None:
    assert parse_yaml(dump_yaml(tree)).value == tree
    assert yaml.safe_load(dump_yaml(tree)) == tree, "a reader of YAML 1.1 sees the same"


@given(data=st.binary(max_size=60) | st.text(alphabet="a:- \n\t[]{}&*<>!'\"#|%@`,0", max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidYaml):
        parse_yaml(data)
