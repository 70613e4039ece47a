"""Turns generated tokens into text, token by token."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

#: A text that ends so may end within a character.
_REPLACEMENT = "\ufffd"
#: Tokens of the prompt that decide whether the text begins with a space.
_CONTEXT_TOKENS = 8


class Detokenizer:
    """The text of generated tokens. What it returns follows from the prompt and the tokens alone.

    The bytes of a half character are held back. `hidden` tokens have no text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], hidden: Collection[int]) -> None:
        self._tokenizer, self._hidden = tokenizer, hidden
        self._context = self._context_of(prompt)
        self._held: list[int] = []
        self._stream = DecodeStream(ids=list(self._context))

    def accept(self, token: int) -> str:
        """Return the text that is complete with this token."""
        if token in self._hidden:
            return ""
        self._held.append(token)
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # tokens that change the text before them, see DecodeStream: their text stands for itself
            text = self._decode(self._held)
            self._stream = DecodeStream(ids=list(self._held))
        if not text:
            return ""
        self._context, self._held = self._held, []
        return str(text)

    def flush(self) -> str:
        """Return the text that was held back, with a replacement character for each half one: no token follows."""
        before, after = self._decode(self._context), self._decode([*self._context, *self._held])
        self._context, self._held = [*self._context, *self._held], []
        return after.removeprefix(before)

    def _context_of(self, prompt: Sequence[int]) -> list[int]:
        """Return the last tokens of the prompt; none if it ends within a character."""
        context = [token for token in prompt[-_CONTEXT_TOKENS:] if token not in self._hidden]
        return [] if self._decode(context).endswith(_REPLACEMENT) else context

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))
