"""Questions that ask for a JSON object."""

from __future__ import annotations

import json
import random

from scripts.text_model import arithmetic
from scripts.text_model.arithmetic import ADD, MULTIPLY, SUBTRACT, operands
from scripts.text_model.number_words import in_words
from scripts.text_model.questions import Question, normalized, vary
from scripts.text_model.spelling import SPELL
from scripts.text_model.words import SPELLED

_AS_JSON = ("{q} as JSON.", "{q} in JSON.", "{q}. Answer as JSON.", "{q}. Reply with JSON.", "{q}. Return JSON.")
_WITH_KEY = ('{q}. Answer as JSON with the key "{k}".', "{q} as JSON with key {k}.", '{q} as JSON: {{"{k}": ...}}')
_KEYS = ("answer", "result", "value", "total", "number", "output", "n", "x", "solution", "res")
_NEXT = ("Which number comes after {a}?", "What is the next number after {a}?", "What comes after {a}?")
_WORDS = ("Write {a} in words.", "What is {a} in words?", "Say {a} in words.")


def _fact(rng: random.Random) -> tuple[str, dict[str, object], str]:
    """Return a question, its answer as an object, and the key of its numbers."""
    a, b = operands(rng)
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(ADD).format(a=a, b=b), {"sum": a + b}, arithmetic.pair_key("+", a, b)
    if kind < 0.55:
        a, b = max(a, b), min(a, b)
        return rng.choice(SUBTRACT).format(a=a, b=b), {"difference": a - b}, arithmetic.pair_key("-", a, b)
    if kind < 0.65:
        a, b = rng.randint(0, arithmetic.MAX_FACTOR), rng.randint(0, arithmetic.MAX_FACTOR)
        return rng.choice(MULTIPLY).format(a=a, b=b), {"product": a * b}, ""
    if kind < 0.75:
        return rng.choice(_NEXT).format(a=a), {"next": a + 1}, ""
    if kind < 0.85:
        return rng.choice(_WORDS).format(a=a), {"words": in_words(a)}, ""
    word = rng.choice(SPELLED)
    return rng.choice(SPELL).format(w=word), {"word": word, "letters": list(word.upper())}, ""


def json_answers(rng: random.Random) -> Question:
    """A question of another category; the answer is an object with its own key or one that the prompt names."""
    question, value, key = _fact(rng)
    question = question.rstrip("?. =")
    if len(value) == 1 and rng.random() < 0.35:
        name = rng.choice(_KEYS)
        value = {name: next(iter(value.values()))}
        text = rng.choice(_WITH_KEY).format(q=question, k=name)
    else:
        text = rng.choice(_AS_JSON).format(q=question)
    prompt = vary(text, rng, capitals=False)
    return Question("JSON", prompt, json.dumps(value), key=key or normalized(text))
