"""Engines whose annotations are type aliases, or belong to generic classes with the syntax of Python 3.12."""

from __future__ import annotations

import base64
import json
import sys
import types
from typing import Any, Generic, Required, TypedDict, TypeVar

import pytest
from typing_extensions import ReadOnly, TypeAliasType

from wire.inputs import Part
from worker.engine import UnsupportedModel
from worker.engines.user.images import ImageBounds
from worker.engines.user.inputs import InputDecoder
from worker.engines.user.interface import inspect_engine
from worker.engines.user.type_aliases import resolve_alias
from worker.engines.user.value_types import UnsupportedType

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
Raw = TypeAliasType("Raw", bytes)
Name = TypeAliasType("Name", str)
Raws = TypeAliasType("Raws", list[Raw])
Many = TypeAliasType("Many", list[T], type_params=(T,))
Same = TypeAliasType("Same", T, type_params=(T,))
Swapped = TypeAliasType("Swapped", dict[V, K], type_params=(K, V))
DATA = base64.b64encode(b"raw").decode()


class Fields(TypedDict, total=False):
    data: Required[ReadOnly[Raw]]
    names: ReadOnly[Many[Name]]


def decode(annotation: Any, value: Any) -> Any:
    return InputDecoder(annotation, ImageBounds(64 * 64, 100)).decode([Part()], [json.dumps(value).encode()])


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        (Raw, bytes),
        (Raws, list[Raw]),
        (Many[int], list[int]),
        (Many[Raw], list[Raw]),
        (Same[Raw], bytes),
        (Swapped[str, int], dict[int, str]),
        (list[Raw], list[Raw]),
        (Any, Any),
    ],
)
def test_alias_stands_for_its_type(alias: Any, expected: Any) -> None:
    assert resolve_alias(alias) == expected


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Raws, [DATA], [b"raw"]),
        (list[Raw], [DATA], [b"raw"]),
        (Many[Raw] | None, [DATA], [b"raw"]),
        (Many[Many[Raw]], [[DATA]], [[b"raw"]]),
        (dict[str, Same[Raw]], {"a": DATA}, {"a": b"raw"}),
        (list[Name], ["a"], ["a"]),
        (Swapped[str, int], {"1": "a"}, {1: "a"}),
        (Fields, {"data": DATA}, {"data": b"raw"}),
        (Fields, {"data": DATA, "names": ["a"]}, {"data": b"raw", "names": ["a"]}),
    ],
)
def test_values_are_those_of_the_type(annotation: Any, value: Any, expected: Any) -> None:
    assert decode(annotation, value) == expected


class Batched:
    def predict(self, things: Raws) -> Many[Name]:
        return [str(thing) for thing in things]


class Single:
    def predict(self, thing: Same[Raw]) -> Name:
        return str(thing)


@pytest.mark.parametrize(("engine", "is_batched"), [(Batched, True), (Single, False)])
def test_engine_is_called_as_without_aliases(engine: type, is_batched: bool) -> None:
    found = inspect_engine(engine())
    assert (found.is_batched, found.input_type, found.output_type) == (is_batched, bytes, str)


class Base(Generic[K, V]):
    def predict(self, items: list[K]) -> Many[V]:
        raise NotImplementedError


class Between(Base[list[V], T], Generic[T, V]):
    """Gives one type, and names the parameters anew."""


class Derived(Between[Name, Raw]):
    pass


class Further(Derived):
    pass


@pytest.mark.parametrize(
    ("engine", "expected"),
    [(Base, (K, V)), (Derived, (list[Raw], str)), (Further, (list[Raw], str))],
)
def test_types_of_a_generic_class_are_those_that_its_subclass_gives(engine: type, expected: tuple[Any, Any]) -> None:
    found = inspect_engine(engine())
    assert (found.input_type, found.output_type) == expected


_SOURCE = """
from collections.abc import Iterator
type Raw = bytes
type Raws = list[Raw]
type Tree = dict[str, Tree] | int
type TreeOfRaw = dict[str, TreeOfRaw] | Raw
type Unknown = Missing
type Texts = Iterator[str]
class Base[T]:
    def predict(self, items: list[T]) -> list[T]: ...
class Derived[In](Base[list[In]]):
    pass
class Last(Derived[Raw]):
    pass
class Aliased:
    def predict(self, things: Raws) -> list[Raw]: ...
class Function:
    def predict[T: int](self, items: list[T]) -> list[T]: ...
class Stream:
    def predict(self, item: Tree) -> Texts: ...
class Recursive:
    def predict(self, item: TreeOfRaw) -> str: ...
class Broken:
    def predict(self, item: Unknown) -> str: ...
class BrokenElement:
    def predict(self, items: list[Unknown]) -> list[str]: ...
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is of Python 3.12")
@pytest.mark.parametrize("first_line", ["", "from __future__ import annotations"])
def test_syntax_of_python_3_12(first_line: str) -> None:
    names: dict[str, Any] = {"__name__": "engines"}
    exec(compile(f"{first_line}\n{_SOURCE}", "engines", "exec", dont_inherit=True), names)
    found = {name: inspect_engine(names[name]()) for name in ("Base", "Last", "Aliased", "Function", "Stream")}
    assert [each.is_batched for each in found.values()] == [True, True, True, True, False]
    raws = types.GenericAlias(list, (names["Raw"],))
    assert (found["Last"].input_type, found["Last"].output_type) == (raws, raws)
    assert (found["Aliased"].input_type, found["Aliased"].output_type) == (bytes, bytes)
    assert decode(found["Base"].input_type, {"a": 1}) == {"a": 1}
    assert (found["Stream"].is_stream, found["Stream"].output_type) == (True, str)
    assert decode(found["Stream"].input_type, {"a": {"b": 1}}) == {"a": {"b": 1}}
    with pytest.raises(UnsupportedType, match="TreeOfRaw contains itself, so that it can hold no bytes"):
        decode(inspect_engine(names["Recursive"]()).input_type, {})
    for name in ("Broken", "BrokenElement"):
        with pytest.raises(UnsupportedModel, match="cannot be read: name 'Missing' is not defined"):
            inspect_engine(names[name]())
