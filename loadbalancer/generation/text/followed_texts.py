"""The texts of a job as a stream tells of them: those under way, and those on the disk. Pure.

A reader has no queue. It remembers how far it has read, so that a slow one holds no memory and lags behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.generation.text.generated_texts import usage_of
from loadbalancer.generation.text.stored_text import job_writer, restored_text
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.text.pieces import TextPiece
from loadbalancer.schema.text.usage import TextUsage
from loadbalancer.storage.records import JobRecord, TextOptions
from wire.inputs import TextInputs


class FollowedTexts:
    """Implements `GeneratedTexts` for one reader of a job."""

    def __init__(self, record: JobRecord) -> None:
        spec = record.order
        self.model = spec.model
        self.choices: list[TextChoice] = [TextChoice(index) for index in range(len(spec.inputs))]
        self.alternatives = next((each.logprobs for each in spec.inputs if isinstance(each, TextInputs)), None)
        self._per_prompt = (spec.text or TextOptions()).choices
        self._followers = [_Follower(choice) for choice in self.choices]
        self._writer = job_writer(record)

    @property
    def usage(self) -> TextUsage:
        return usage_of(self.choices, self._per_prompt)

    def follow(self, running: Mapping[int, TextChoice]) -> bytes:
        """Return the events of what is new in the texts under way, by index in the job."""
        changed = [self.choices[item] for item, choice in running.items() if self._followers[item].follow(choice)]
        return self._writer.news(self, changed) if changed else b""

    def finish(self, item: int, stored: bytes) -> bytes:
        """Return the events of the rest of a text that is complete. Raises `msgspec.MsgspecError` for no text."""
        self._followers[item].finish(restored_text(item, stored))
        return self._writer.news(self, [self.choices[item]])

    def end(self) -> bytes:
        """Return the last events of a job that is done."""
        return self._writer.end(self)

    def failure(self, error: ApiError) -> bytes:
        """Return the last events of a job that has failed."""
        return self._writer.failure(error)


class _Follower:
    """Copies what another choice has taken in since the last time. The other one only grows."""

    def __init__(self, choice: TextChoice) -> None:
        self._choice = choice
        #: What was copied: characters, pieces and characters of plain text, log-probabilities.
        self._chars = self._pieces = self._text = self._logprobs = 0

    def follow(self, source: TextChoice) -> bool:
        """Return whether there was anything new."""
        pieces, text = source.pieces[self._pieces :], source.text[self._text :]
        self._pieces += len(pieces)
        self._text += len(text)
        if text:
            pieces.append(TextPiece("content", text))
        if not pieces:
            return False
        self._add(pieces, source)
        return True

    def finish(self, source: TextChoice) -> None:
        """Copy the rest of a complete text."""
        self._add(_after(source.take(), self._chars), source)
        own = self._choice
        own.finish, own.stop_reason, own.is_in_call = source.finish, source.stop_reason, source.is_in_call

    def _add(self, pieces: Sequence[TextPiece], source: TextChoice) -> None:
        own = self._choice
        self._chars += sum(len(piece.text) for piece in pieces)
        if len(pieces) == 1 and pieces[0].kind == "content" and not own.pieces:
            own.text += pieces[0].text  # what is plain is told with less work
        else:
            own.pieces += pieces
        own.logprobs += source.logprobs[self._logprobs :]
        self._logprobs = len(source.logprobs)
        own.calls = source.calls
        own.prompt_tokens, own.cached_tokens = source.prompt_tokens, source.cached_tokens
        own.generated_tokens, own.reasoning_tokens = source.generated_tokens, source.reasoning_tokens
        own.has_news = True


def _after(pieces: Iterable[TextPiece], chars: int) -> list[TextPiece]:
    """Return the pieces without the first characters of all of them; a call is never divided."""
    found = []
    for piece in pieces:
        if chars < len(piece.text):
            found.append(piece._replace(text=piece.text[chars:]))
        chars = max(chars - len(piece.text), 0)
    return found
