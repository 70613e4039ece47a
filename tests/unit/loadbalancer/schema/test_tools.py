from __future__ import annotations

import msgspec
import pytest

from configs.text_settings import TextLimits
from loadbalancer.generation.text.chat_spec import schema_bounds
from loadbalancer.schema.text.tools import Tool, tool_definitions


@pytest.mark.parametrize(("given", "strict"), [("true", True), ("false", None), ("null", None)])
def test_strict_tools_stay_strict(given: str, strict: bool | None) -> None:
    tool = msgspec.json.decode(f'{{"type": "function", "function": {{"name": "f", "strict": {given}}}}}', type=Tool)
    [definition] = tool_definitions([tool], 1, schema_bounds(TextLimits()))
    assert definition["function"].get("strict") is strict
