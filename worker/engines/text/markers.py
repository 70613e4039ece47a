"""Finds in a chat template how a model marks its reasoning and its tool calls."""

from __future__ import annotations

import re
from collections.abc import Collection

from wire.text import Markers

_REASONING = (Markers("<think>", "</think>"), Markers("[THINK]", "[/THINK]"), Markers("<reasoning>", "</reasoning>"))
#: Without an end marker, a list of calls follows the begin marker.
_TOOL_CALLS = (Markers("<tool_call>", "</tool_call>"), Markers("[TOOL_CALLS]", ""))
#: A call as a JSON object: its key, in a template's own quotes.
_JSON_CALL = re.compile(r"""\\?["']arguments\\?["']""")
#: Calls of other formats between the same markers.
_OTHER_CALLS = ("<function=", "<arg_key>", "<parameter=", "[ARGS]", "[CALL_ID]")


def find_reasoning(template: str, added_tokens: Collection[str]) -> Markers | None:
    """Return the texts around the reasoning."""
    for markers in _REASONING:
        if all(text in template or text in added_tokens for text in (markers.begin, markers.end)):
            return markers
    return None


def find_tool_calls(template: str) -> Markers | None:
    """Return the texts around a tool call, if the template takes tools and shows each call as a JSON object."""
    if not takes_tools(template) or any(text in template for text in _OTHER_CALLS) or not _JSON_CALL.search(template):
        return None
    return next((each for each in _TOOL_CALLS if each.begin in template and each.end in template), None)


def takes_tools(template: str) -> bool:
    return re.search(r"\btools\b", template) is not None


def knows_role(template: str, role: str) -> bool:
    return re.search(rf"""["']{re.escape(role)}["']""", template) is not None
