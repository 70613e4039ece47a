"""Questions that ask for a JSON object."""

from __future__ import annotations

import json
import random

from scripts.text_model.arithmetic import ADD, MAX_FACTOR, MULTIPLY, SUBTRACT, operands
from scripts.text_model.number_words import in_words
from scripts.text_model.questions import Question, normalized, vary
from scripts.text_model.spelling import SPELL
from scripts.text_model.words import SPELLED

_AS_JSON = ("{q} as JSON.", "{q} in JSON.", "{q}. Answer as JSON.", "{q}. Reply with JSON.", "{q}. Return JSON.")
_WITH_KEY = ('{q}. Answer as JSON with the key "{k}".', "{q} as JSON with key {k}.", '{q} as JSON: {{"{k}": ...}}')
_KEYS = ("answer", "result", "value", "total", "number")
_NEXT = ("Which number comes after {a}?", "What is the next number after {a}?", "What comes after {a}?")
_WORDS = ("Write {a} in words.", "What is {a} in words?", "Say {a} in words.")


def _fact(rng: random.Random) -> tuple[str, dict[str, object]]:
    """Return a question and its answer as an object."""
    a, b = operands(rng)
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(ADD).format(a=a, b=b), {"sum": a + b}
    if kind < 0.55:
        a, b = max(a, b), min(a, b)
        return rng.choice(SUBTRACT).format(a=a, b=b), {"difference": a - b}
    if kind < 0.65:
        a, b = rng.randint(0, MAX_FACTOR), rng.randint(0, MAX_FACTOR)
        return rng.choice(MULTIPLY).format(a=a, b=b), {"product": a * b}
    if kind < 0.75:
        return rng.choice(_NEXT).format(a=a), {"next": a + 1}
    if kind < 0.85:
        return rng.choice(_WORDS).format(a=a), {"words": in_words(a)}
    word = rng.choice(SPELLED)
    return rng.choice(SPELL).format(w=word), {"letters": list(word.upper())}


def json_answers(rng: random.Random) -> Question:
    """A question of another category; the answer is an object with its own key or one that the prompt names."""
    question, value = _fact(rng)
    question = question.rstrip("?. =")
    if "letters" not in value and rng.random() < 0.35:
        name = rng.choice(_KEYS)
        value = {name: next(iter(value.values()))}
        text = rng.choice(_WITH_KEY).format(q=question, k=name)
    else:
        text = rng.choice(_AS_JSON).format(q=question)
    return Question("JSON", vary(text, rng), json.dumps(value), key=normalized(text))
