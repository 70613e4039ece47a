"""Questions about the letters of a word."""

from __future__ import annotations

import random

from scripts.text_model.questions import Question, ask
from scripts.text_model.words import SPELLED

SPELL = (
    *("Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "How is {w} spelled?", "Can you spell {w}?"),
    *("What is the spelling of {w}?", "Please spell {w}.", "Spell out {w}."),
)
_COUNT = (
    *("How many letters does {w} have?", "How many letters are in {w}?", "Count the letters of {w}."),
    *("How long is the word {w}?", "What is the number of letters in {w}?"),
)
_PLACE = (
    *("What is the {p} letter of {w}?", "Which letter is the {p} of {w}?", "Name the {p} letter of {w}."),
    *("Give me the {p} letter of {w}.", "Which is the {p} letter of the word {w}?"),
)


def letters(word: str) -> str:
    """Return the letters of a word as they are spelled: `C A T`."""
    return " ".join(word.upper())


def spelling(rng: random.Random) -> Question:
    word = rng.choice(SPELLED)
    return ask("spelling", SPELL, f"It is spelled {letters(word)}.", rng, w=word)


def letter_questions(rng: random.Random) -> Question:
    word = rng.choice(SPELLED)
    if rng.random() < 0.5:
        return ask("letters", _COUNT, f"It has {len(word)} letters.", rng, w=word)
    place, letter = rng.choice((("first", word[0]), ("last", word[-1])))
    return ask("letters", _PLACE, f"The {place} letter is {letter.upper()}.", rng, p=place, w=word)
