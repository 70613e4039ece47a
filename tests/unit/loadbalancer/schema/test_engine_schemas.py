"""Schemas that engines report, in the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from loadbalancer.schema.engine_schemas import engine_schema


class Inner(BaseModel):
    label: int


class Outer(BaseModel):
    inner: Inner
    others: list[Inner] = []


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for each in value.values() for found in references(each)]
    return [found for each in value for found in references(each)] if isinstance(value, list) else []


def test_definitions_become_components() -> None:
    found = engine_schema(json.dumps(Outer.model_json_schema()), "m.Input")
    assert found is not None
    assert set(found.components) == {"m.Input.Inner"}
    assert set(references(found.schema)) == {"#/components/schemas/m.Input.Inner"}
    assert "$defs" not in found.schema


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"$ref": "http://evil.example/schema.json"}, {}),
        ({"$ref": "#/components/schemas/ErrorBody"}, {}),
        ({"$ref": "#/$defs/missing"}, {}),
        ({"$ref": 7, "$id": "http://evil.example", "externalDocs": {"url": "x"}}, {}),
        (
            {"discriminator": {"mapping": {"a": "http://evil.example", "b": "#/$defs/x"}}},
            {"discriminator": {"mapping": {}}},
        ),
        ({"$defs": 7, "type": "integer"}, {"type": "integer"}),
    ],
)
def test_references_outside_are_removed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    found = engine_schema(json.dumps(schema), "m")
    assert found is not None
    assert found.schema == expected


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "{" * 5000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_text_that_is_no_schema_is_unknown(text: str) -> None:
    assert engine_schema(text, "m") is None


def test_depth_is_bounded() -> None:
    text = '{"items":' * 200 + "1" + "}" * 200
    found = engine_schema(text, "m")
    assert found is not None
    assert json.dumps(found.schema).count("items") < 40


NAMES = st.sampled_from(["$ref", "$defs", "mapping", "properties", "a"])
TARGETS = st.sampled_from(["#/$defs/a", "#/$defs/properties", "http://x", "#"])
SCHEMAS = st.recursive(
    st.none() | st.integers() | TARGETS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(NAMES, SCHEMAS, max_size=5))
def test_every_reference_has_its_component(schema: dict[str, Any]) -> None:
    found = engine_schema(json.dumps(schema), "m")
    assert found is not None
    targets = {f"#/components/schemas/{name}" for name in found.components}
    assert set(references(found.schema) + references(list(found.components.values()))) <= targets
