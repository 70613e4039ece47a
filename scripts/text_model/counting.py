"""Questions with one number: counting, neighbours, number words, parity."""

from __future__ import annotations

import random

from scripts.text_model.number_words import DIGITS, in_words
from scripts.text_model.questions import Question, ask

#: Largest number of a list, and of other questions.
MAX_COUNTED, MAX_NUMBER = 10, 100
#: Largest number that is also written in words.
_MAX_IN_WORDS = 20

_UP = (
    *("Count to {a}.", "Count up to {a}.", "Can you count to {a}?", "Count from one to {a}.", "Count from 1 to {a}."),
    *("Please count to {a}.", "List the numbers up to {a}.", "List the numbers from 1 to {a}."),
)
_DOWN = (
    *(
        "Count down from {a}.",
        "Count backwards from {a}.",
        "Can you count down from {a}?",
        "Please count down from {a}.",
    ),
    *("Count down from {a} to 1.", "Count down from {a} to one.", "Count backwards from {a} to 1."),
)
_AFTER = (
    *("Which number comes after {a}?", "What comes after {a}?", "What is the next number after {a}?"),
    *("What number follows {a}?", "Name the number after {a}.", "Which number is next after {a}?"),
)
_BEFORE = (
    *("Which number comes before {a}?", "What comes before {a}?", "What is the number before {a}?"),
    *("What number precedes {a}?", "Name the number before {a}.", "Which number is just before {a}?"),
)
_TO_WORDS = (
    *("Write {a} in words.", "What is {a} in words?", "How do you write {a} in words?", "Say {a} in words."),
    *("Write the number {a} as a word.", "{a} in words"),
)
_TO_DIGITS = (
    *("Write {a} in digits.", "What is {a} in digits?", "How do you write {a} in digits?", "{a} in digits"),
    *("Write the number {a} with digits.", "Which number is {a}?"),
)
_PARITY = (
    "Is {a} even or odd?",
    "Is {a} odd or even?",
    "Is the number {a} even or odd?",
    "{a}: even or odd?",
    "Is {a} even?",
    "Is {a} odd?",
)
_ALL_DIGITS = (
    *("{v} the ten digits.", "{v} the ten digits in words.", "{v} all digits.", "{v} all digits in words."),
    *("{v} the digits from zero to nine.", "{v} the digits in words.", "{v} all ten digits."),
)


def counting(rng: random.Random) -> Question:
    if rng.random() < 0.12:
        verb = rng.choice(("List", "Name", "Write", "Say", "Tell me"))
        return ask("counting", _ALL_DIGITS, f"The ten digits are {', '.join(DIGITS)}.", rng, v=verb)
    shown = in_words if rng.random() < 0.3 else str
    number = rng.randint(2, MAX_COUNTED)
    down = rng.random() < 0.4
    numbers = range(number, 0, -1) if down else range(1, number + 1)
    answer = ", ".join(shown(each) for each in numbers) + "."
    return ask("counting", _DOWN if down else _UP, answer, rng, a=shown(number))


def neighbours(rng: random.Random) -> Question:
    spoken = rng.random() < 0.25
    shown = in_words if spoken else str
    number = rng.randint(1, (_MAX_IN_WORDS if spoken else MAX_NUMBER) - 1)
    if rng.random() < 0.5:
        return ask("neighbours", _AFTER, f"The next number is {shown(number + 1)}.", rng, a=shown(number))
    return ask("neighbours", _BEFORE, f"The previous number is {shown(number - 1)}.", rng, a=shown(number))


def number_words(rng: random.Random) -> Question:
    number = rng.randint(0, _MAX_IN_WORDS if rng.random() < 0.3 else MAX_NUMBER)
    words = in_words(number)
    if rng.random() < 0.5:
        return ask("number words", _TO_WORDS, f"In words it is {words}.", rng, a=number)
    return ask("number words", _TO_DIGITS, f"In digits it is {number}.", rng, a=words)


def parity(rng: random.Random) -> Question:
    number = rng.randint(0, MAX_NUMBER)
    return ask("parity", _PARITY, f"It is {'odd' if number % 2 else 'even'}.", rng, a=number)
