"""How models write tool calls: the known formats, and which of them a chat template shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from configs.text_settings import ToolFormatName
from wire.text import ToolCallFormat
from worker.engines.text.markers import takes_tools

#: By the names of vLLM's parsers, of which `mistral` reads both of Mistral's.
TOOL_FORMATS: Mapping[ToolFormatName, ToolCallFormat] = {
    "hermes": ToolCallFormat("<tool_call>", "</tool_call>"),
    "mistral": ToolCallFormat("[TOOL_CALLS]", "", "list"),
    "mistral_args": ToolCallFormat("[TOOL_CALLS]", "", "named", before_arguments="[ARGS]"),
    "granite": ToolCallFormat("<|tool_call|>", "", "list"),
    "jamba": ToolCallFormat("<tool_calls>", "</tool_calls>", "list"),
    "phi4_mini_json": ToolCallFormat("functools", "", "list"),
    "llama3_json": ToolCallFormat("", "", "bare", "parameters"),
}
_CALL_ID = "[CALL_ID]"
#: Calls of other formats between the same markers.
_OTHER_FORMATS = ("<function=", "<arg_key>", "<parameter=")


class _Sign(NamedTuple):
    """What a template has that shows calls of a format."""

    name: ToolFormatName
    texts: tuple[str, ...]
    #: A part of a call; None: the template names the format only.
    pattern: re.Pattern[str] | None = None


#: A call as a JSON object: its key, in a template's own quotes.
_JSON_CALL = re.compile(r"""\\?["']arguments\\?["']""")
#: The same with the arguments as `parameters`, which is also a key of a tool's definition.
_BARE_CALL = re.compile(r"""["']parameters["']: ['"]\s*(\+|~|-?\}\}\s*\{\{-?)\s*\(?[\w.\[\]'"]*arguments""")
#: The first one counts.
_SIGNS = (
    _Sign("mistral_args", ("[TOOL_CALLS]", "[ARGS]")),
    _Sign("hermes", ("<tool_call>", "</tool_call>"), _JSON_CALL),
    _Sign("mistral", ("[TOOL_CALLS]",), _JSON_CALL),
    _Sign("jamba", ("<tool_calls>", "</tool_calls>"), _JSON_CALL),
    _Sign("granite", ("<|tool_call|>",)),
    _Sign("llama3_json", (), _BARE_CALL),
)


def find_tool_calls(template: str) -> ToolCallFormat | None:
    """Return how the model writes tool calls; None where the template takes no tools, or shows no known format."""
    if not takes_tools(template) or any(text in template for text in _OTHER_FORMATS):
        return None
    for name, texts, pattern in _SIGNS:
        if all(text in template for text in texts) and (pattern is None or pattern.search(template)):
            found = TOOL_FORMATS[name]
            return _with_id(found) if found.style == "named" and _CALL_ID in template else found
    return None


def configured_tool_calls(setting: ToolFormatName | tuple[str, str] | None) -> ToolCallFormat | None:
    """Return the format that the configuration names."""
    if setting is None:
        return None
    if isinstance(setting, str):
        return TOOL_FORMATS[setting]
    begin, end = setting
    return ToolCallFormat(begin, end, "object" if end else "list")


def _with_id(form: ToolCallFormat) -> ToolCallFormat:
    return ToolCallFormat(form.begin, form.end, form.style, form.key, _CALL_ID, form.before_arguments)
