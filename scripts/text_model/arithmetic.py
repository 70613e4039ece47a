"""Questions with two numbers: adding, subtracting, multiplying, comparing."""

from __future__ import annotations

import random

from scripts.text_model.number_words import in_words
from scripts.text_model.questions import Question, ask

#: Largest operand of sums and differences.
MAX_OPERAND = 20
#: Largest factor of a product, and largest operand that is also written in words.
MAX_FACTOR = 10
#: Largest number that is compared.
MAX_COMPARED = 100

ADD = (
    *("What is {a} plus {b}?", "What is {a} + {b}?", "Add {a} and {b}.", "{a} + {b} = ?", "{a} + {b}", "{a} plus {b}?"),
    *("Calculate {a} + {b}.", "How much is {a} plus {b}?", "What is the sum of {a} and {b}?", "{a}+{b}"),
    *("What does {a} plus {b} make?", "Compute {a} plus {b}."),
)
SUBTRACT = (
    *("What is {a} minus {b}?", "What is {a} - {b}?", "Subtract {b} from {a}.", "{a} - {b} = ?", "{a} - {b}"),
    *("Calculate {a} - {b}.", "How much is {a} minus {b}?", "Take {b} away from {a}.", "{a} minus {b}?", "{a}-{b}"),
    *("What is {b} less than {a}?", "Compute {a} minus {b}."),
)
MULTIPLY = (
    *("What is {a} times {b}?", "What is {a} * {b}?", "Multiply {a} by {b}.", "{a} * {b} = ?", "{a} x {b}"),
    *("Calculate {a} * {b}.", "How much is {a} times {b}?", "What is the product of {a} and {b}?", "{a} times {b}?"),
    *("Multiply {a} and {b}.", "Compute {a} times {b}."),
)
_LARGER = (
    *("Which is larger, {a} or {b}?", "Which number is larger, {a} or {b}?", "What is more, {a} or {b}?"),
    *("Which is bigger, {a} or {b}?", "Which is greater: {a} or {b}?", "Name the larger number of {a} and {b}."),
)
_SMALLER = (
    *("Which is smaller, {a} or {b}?", "Which number is smaller, {a} or {b}?", "What is less, {a} or {b}?"),
    *("Which is less: {a} or {b}?", "Name the smaller number of {a} and {b}."),
)


def _spoken(phrases: tuple[str, ...]) -> list[str]:
    """Return the phrases in which numbers in words read well: those without a sign."""
    return [phrase for phrase in phrases if not any(sign in phrase for sign in "+-*=") and " x " not in phrase]


def operands(rng: random.Random, *, ordered: bool = False) -> tuple[int, int]:
    """Return two operands of a sum; `ordered`: of a difference, which is not negative."""
    a, b = rng.randint(0, MAX_OPERAND), rng.randint(0, MAX_OPERAND)
    return (b, a) if ordered and a < b else (a, b)


def sum_reasoning(a: int, b: int) -> str:
    """Return the steps of a sum: ones, then tens."""
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}."
    ones, tens = a % 10 + b % 10, a // 10 * 10 + b // 10 * 10
    return f"{a % 10} + {b % 10} = {ones}. {a // 10 * 10} + {b // 10 * 10} = {tens}. {tens} + {ones} = {a + b}."


def addition(rng: random.Random) -> Question:
    if rng.random() < 0.2:
        a, b = rng.randint(0, MAX_FACTOR), rng.randint(0, MAX_FACTOR)
        answer = f"The sum is {in_words(a + b)}."
        reasoning = f"{a} + {b} = {a + b}."
        return ask("addition", _spoken(ADD), answer, rng, reasoning=reasoning, a=in_words(a), b=in_words(b))
    a, b = operands(rng)
    return ask("addition", ADD, f"The sum is {a + b}.", rng, reasoning=sum_reasoning(a, b), a=a, b=b)


def subtraction(rng: random.Random) -> Question:
    if rng.random() < 0.15:
        b, a = sorted((rng.randint(0, MAX_FACTOR), rng.randint(0, MAX_FACTOR)))
        answer = f"The difference is {in_words(a - b)}."
        return ask("subtraction", _spoken(SUBTRACT), answer, rng, a=in_words(a), b=in_words(b))
    a, b = operands(rng, ordered=True)
    return ask("subtraction", SUBTRACT, f"The difference is {a - b}.", rng, a=a, b=b)


def multiplication(rng: random.Random) -> Question:
    a, b = rng.randint(0, MAX_FACTOR), rng.randint(0, MAX_FACTOR)
    return ask("multiplication", MULTIPLY, f"The product is {a * b}.", rng, a=a, b=b)


def comparison(rng: random.Random) -> Question:
    a, b = rng.sample(range(MAX_COMPARED + 1), 2)
    if rng.random() < 0.5:
        return ask("comparison", _LARGER, f"The larger number is {max(a, b)}.", rng, a=a, b=b)
    return ask("comparison", _SMALLER, f"The smaller number is {min(a, b)}.", rng, a=a, b=b)
