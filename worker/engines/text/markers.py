"""Finds in a chat template how a model marks its reasoning, and what else it knows."""

from __future__ import annotations

import re
from collections.abc import Collection

from wire.text import Markers

_REASONING = (Markers("<think>", "</think>"), Markers("[THINK]", "[/THINK]"), Markers("<reasoning>", "</reasoning>"))


def find_reasoning(template: str, added_tokens: Collection[str]) -> Markers | None:
    """Return the texts around the reasoning."""
    for markers in _REASONING:
        if all(text in template or text in added_tokens for text in (markers.begin, markers.end)):
            return markers
    return None


def takes_tools(template: str) -> bool:
    return re.search(r"\btools\b", template) is not None


def knows_role(template: str, role: str) -> bool:
    return re.search(rf"""["']{re.escape(role)}["']""", template) is not None
