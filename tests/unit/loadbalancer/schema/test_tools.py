from __future__ import annotations

import msgspec
import pytest

from configs.text_settings import TextLimits
from loadbalancer.generation.text.chat_spec import schema_bounds
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.text.tools import Tool, tool_definitions


@pytest.mark.parametrize(("given", "strict"), [("true", True), ("false", None), ("null", None)])
def test_strict_tools_stay_strict(given: str, strict: bool | None) -> None:
    tool = msgspec.json.decode(f'{{"type": "function", "function": {{"name": "f", "strict": {given}}}}}', type=Tool)
    [definition] = tool_definitions([tool], 1, schema_bounds(TextLimits()))
    assert definition["function"].get("strict") is strict


@pytest.mark.parametrize(
    ("schema", "is_refused"),
    [
        ('{"type": "string"}', True),
        ('{"type": ["object", "null"]}', True),
        ('{"type": 5}', True),
        ('{"type": "object"}', False),
        ('{"properties": {}}', False),
        ('{"$ref": "#/$defs/a", "$defs": {"a": {}}}', False),
    ],
)
def test_arguments_are_an_object(schema: str, is_refused: bool) -> None:
    given = f'{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}'
    tool = msgspec.json.decode(given, type=Tool)
    if not is_refused:
        assert tool_definitions([tool], 1, schema_bounds(TextLimits()))
        return
    with pytest.raises(InvalidRequest, match='Must be "object"') as caught:
        tool_definitions([tool], 1, schema_bounds(TextLimits()))
    assert caught.value.param == "tools[0].function.parameters.type"
