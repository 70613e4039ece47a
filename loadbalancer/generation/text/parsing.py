"""Chooses how a model's texts are divided. Pure."""

from __future__ import annotations

from loadbalancer.generation.text.choice import TextParser
from loadbalancer.generation.text.output_parser import OutputParser
from loadbalancer.generation.text.text_spec import OutputFormat
from wire.text import TextInfo


def text_parser(info: TextInfo, output: OutputFormat) -> TextParser | None:
    """Return a parser for one text; None if all of it is content."""
    reasoning = info.reasoning if output.reasoning else None
    tool_calls = info.tool_calls if output.tools else None
    if reasoning is None and tool_calls is None:
        return None
    return OutputParser(reasoning, tool_calls, parallel_calls=output.parallel_calls)
