"""The grammars of one model's texts."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Mapping

from tokenizers import Tokenizer

from wire.inputs import TextInputs
from wire.text import ChatPrompt, Markers, TextPrompt, ToolCallFormat
from worker.engine import TaskError
from worker.engines.text.grammar import Grammar, Grammars
from worker.engines.text.structure import TextFormat, is_free, text_grammar

log = logging.getLogger(__name__)


class StructuredOutput:
    """Makes the grammars of texts, as far as llguidance supports the tokenizer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: int,
        eos_ids: Collection[int],
        added: Mapping[int, str],
        reasoning: Markers | None,
        tool_calls: ToolCallFormat | None,
    ) -> None:
        """`added`: texts of the tokens that are not the model's own."""
        self._tokenizer, self._vocabulary, self._eos_ids, self._added = tokenizer, vocabulary, eos_ids, added
        self._reasoning, self._tool_calls = reasoning, tool_calls

    def prepare(self) -> None:
        """Prepare for the first grammar, which takes up to a second for a large vocabulary."""
        _ = self._grammars

    def grammar(self, inputs: TextInputs, prompt: TextPrompt, *, opens_reasoning: bool) -> Grammar | None:
        """Return the grammar of a text; None for a free one. Raises `TaskError` for a schema or tools with an error."""
        if not inputs.json_schema and not isinstance(prompt, ChatPrompt):
            return None
        grammars = self._grammars
        form = TextFormat(self._reasoning, self._tool_calls, grammars.special_id if grammars else _no_id)
        lark = text_grammar(inputs, prompt, form, opens_reasoning=opens_reasoning)
        if lark is None or (grammars is None and is_free(inputs, prompt)):
            return None
        if grammars is None:
            raise _invalid("this model has neither structured output nor forced tool calls for its kind of tokenizer")
        try:
            return grammars.compile(lark, is_free=is_free(inputs, prompt))
        except ValueError as error:
            raise _invalid(f"the JSON schemas cannot be used together: {error}") from error

    @functools.cached_property
    def _grammars(self) -> Grammars | None:
        """Return what compiles grammars; None for a tokenizer without support."""
        try:
            return Grammars(self._tokenizer, self._vocabulary, self._eos_ids, self._added)
        except ValueError as error:
            log.warning("this model has no structured output: %s", error)
            return None


def _no_id(text: str) -> int | None:
    del text
    return None


def _invalid(message: str) -> TaskError:
    return TaskError("invalid", message, 400)
