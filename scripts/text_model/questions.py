"""What a question of the built-in text model is, how its wording varies, and which questions are held out."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

#: One of this many keys is held out from training.
_HELD_OUT_SHARE = 10
_PREFIXES = ("Please answer: ", "Tell me: ", "Quick question: ", "Hi! ", "Question: ")
_NOT_WORD = re.compile(r"[^\w+*/<>=-]+")


@dataclass(frozen=True)
class Question:
    """A prompt with its only correct answer."""

    category: str
    prompt: str
    answer: str
    #: The text between `<think>` and `</think>` if the model is to reason first.
    reasoning: str = "No calculation is needed."
    #: What is held out as a whole: questions with equal keys are all in training or all held out.
    key: str = field(default="")

    @property
    def is_held_out(self) -> bool:
        return is_held_out(self.key or normalized(self.prompt))


Generator = Callable[[random.Random], Question]


def normalized(text: str) -> str:
    """Return the text without case and punctuation."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


def is_held_out(key: str) -> bool:
    """Return whether no question with this key may be in the training set."""
    return hashlib.sha256(key.encode()).digest()[0] % _HELD_OUT_SHARE == 0


def vary(text: str, rng: random.Random) -> str:
    """Return the text in another style: case, final punctuation, a prefix."""
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?.! ")
    return rng.choice(_PREFIXES) + text if rng.random() < 0.08 else text


def ask(
    category: str,
    phrases: Sequence[str],
    answer: str,
    rng: random.Random,
    *,
    reasoning: str = "No calculation is needed.",
    **values: object,
) -> Question:
    """Return a question in one of the phrases. It is held out, or not, in every style."""
    phrase = rng.choice(phrases).format(**values)
    return Question(category, vary(phrase, rng), answer, reasoning, normalized(phrase))
