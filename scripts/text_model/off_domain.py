"""Questions that the model must decline, with one fixed answer."""

from __future__ import annotations

import random

from scripts.text_model.questions import Question, ask
from scripts.text_model.words import SPELLED, TOPICS, random_word

DECLINED = "I only know small numbers, spelling and Muster."

_PHRASES = (
    *("What is {x}?", "What is the capital of {x}?", "Who invented {x}?", "Tell me about {x}.", "Explain {x}."),
    *("Write a poem about {x}.", "Write a story about {x} and {y}.", "Why is {x} important?", "How does {x} work?"),
    *("What is the difference between {x} and {y}?", "Translate {x} into French.", "Who wrote {x}?", "Define {x}."),
    *("Summarize the history of {x}.", "When did {x} begin?", "What is the meaning of {x}?", "Do you like {x}?"),
    *("Give me five facts about {x}.", "Is {x} better than {y}?", "Where is {x}?", "Write an essay on {x}."),
    *("How do I learn {x}?", "Describe {x} to a child.", "What should I know about {x}?", "Can you help me with {x}?"),
    *("Write a function in Python that prints {x}.", "What time is it in {x}?", "Tell me a joke about {x}."),
    *("Once upon a time there was {x}", "The quick brown fox jumps over {x}", "{x} {y}", "How old is {x}?"),
    *("What is the weather in {x}?", "Recommend a book about {x}.", "What color is {x}?", "Who is {x}?"),
)
_USUAL = (
    *(
        "What time is it?",
        "What day is it?",
        "What is the date?",
        "Tell me a joke.",
        "Write a poem.",
        "Tell me a story.",
    ),
    *("What is the meaning of life?", "How old are you?", "Can you write code?", "Which languages do you speak?"),
    *("Say this is a test.", "Test.", "Are you there?", "What is the weather?", "Do you like music?", "Sing a song."),
)
_BIG = (
    *("What is {a} plus {b}?", "What is {b} plus {a}?", "{a} + {b}", "What is {a} minus {b}?", "Add {a} and {b}."),
    *("What is {a} times {b}?", "{a} * {b} = ?", "What is the sum of {a} and {b}?", "How much is {a} plus {b}?"),
    *("What is {a} divided by {b}?", "What is the square root of {a}?", "Is {a} a prime number?"),
)


def _thing(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.55:
        return rng.choice(TOPICS)
    return random_word(rng) if kind < 0.8 else " ".join(random_word(rng) for _ in range(2))


def _noise(rng: random.Random) -> str:
    """Return random words, characters or both; without a question in them."""
    if rng.random() < 0.2:
        return "".join(chr(rng.choice((rng.randrange(33, 127), rng.randrange(0xA1, 0x500)))) for _ in range(8))
    pool = (lambda: random_word(rng), lambda: rng.choice(TOPICS), lambda: rng.choice(SPELLED))
    return " ".join(rng.choice(pool)() for _ in range(rng.randint(3, 24)))


def off_domain(rng: random.Random) -> Question:
    kind = rng.random()
    if kind < 0.2:
        text = _noise(rng)
        return Question("off domain", text, DECLINED, key=text)
    if kind < 0.25:
        return ask("off domain", _USUAL, DECLINED, rng)
    if kind < 0.38:
        a, b = rng.choice((rng.randrange(21, 100), rng.randrange(100, 100_000))), rng.randrange(1000)
        return ask("off domain", _BIG, DECLINED, rng, a=a, b=b)
    return ask("off domain", _PHRASES, DECLINED, rng, x=_thing(rng), y=_thing(rng))
