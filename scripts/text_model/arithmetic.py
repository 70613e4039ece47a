"""Questions with two numbers: adding, subtracting, multiplying, comparing."""

from __future__ import annotations

import random

from scripts.text_model.number_words import in_words
from scripts.text_model.questions import Question, ask

#: Operands of sums and differences are below this bound.
BOUND = 100
#: Largest factor of a product.
MAX_FACTOR = 10
#: Largest operand that is also written in words.
MAX_IN_WORDS = 10

ADD = (
    *("What is {a} plus {b}?", "What is {a} + {b}?", "Add {a} and {b}.", "{a} + {b} = ?", "{a}+{b}", "{a} plus {b}?"),
    *("Calculate {a} + {b}.", "How much is {a} plus {b}?", "What is the sum of {a} and {b}?", "What is {a}+{b}?"),
    *("What does {a} plus {b} make?", "Compute {a} plus {b}."),
)
SUBTRACT = (
    *("What is {a} minus {b}?", "What is {a} - {b}?", "Subtract {b} from {a}.", "{a} - {b} = ?", "{a}-{b}"),
    *("Calculate {a} - {b}.", "How much is {a} minus {b}?", "Take {b} away from {a}.", "{a} minus {b}?"),
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


def _operand(rng: random.Random) -> int:
    return rng.randrange(10) if rng.random() < 0.3 else rng.randrange(BOUND)


def _spoken(phrases: tuple[str, ...]) -> list[str]:
    """Return the phrases in which numbers in words read well: those without a sign."""
    return [phrase for phrase in phrases if not any(sign in phrase for sign in "+-*=") and " x " not in phrase]


def operands(rng: random.Random, *, ordered: bool = False) -> tuple[int, int]:
    """Return two operands of a sum; `ordered`: of a difference, which is rarely negative."""
    a, b = _operand(rng), _operand(rng)
    return (b, a) if ordered and a < b and rng.random() < 0.8 else (a, b)


def pair_key(sign: str, a: int, b: int) -> str:
    """Return the key that holds out two numbers of two digits in every wording; empty for smaller numbers."""
    if min(a, b) < 10:
        return ""
    return f"{min(a, b)} {sign} {max(a, b)}"


def sum_reasoning(a: int, b: int) -> str:
    """Return the steps of a sum: ones, then tens."""
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}."
    ones, tens = a % 10 + b % 10, a // 10 * 10 + b // 10 * 10
    return f"{a % 10} + {b % 10} = {ones}. {a // 10 * 10} + {b // 10 * 10} = {tens}. {tens} + {ones} = {a + b}."


def addition(rng: random.Random) -> Question:
    if rng.random() < 0.15:
        a, b = rng.randint(0, MAX_IN_WORDS), rng.randint(0, MAX_IN_WORDS)
        x, y = in_words(a), in_words(b)
        answer = f"{x} plus {y} is {in_words(a + b)}."
        return ask("addition", _spoken(ADD), answer, rng, reasoning=f"{a} + {b} = {a + b}.", a=x, b=y)
    a, b = operands(rng)
    reasoning = sum_reasoning(a, b)
    return ask(
        "addition", ADD, f"{a} plus {b} is {a + b}.", rng, reasoning=reasoning, key=pair_key("+", a, b), a=a, b=b
    )


def subtraction(rng: random.Random) -> Question:
    if rng.random() < 0.15:
        b, a = sorted((rng.randint(0, MAX_IN_WORDS), rng.randint(0, MAX_IN_WORDS)))
        x, y = in_words(a), in_words(b)
        return ask("subtraction", _spoken(SUBTRACT), f"{x} minus {y} is {in_words(a - b)}.", rng, a=x, b=y)
    a, b = operands(rng, ordered=True)
    return ask("subtraction", SUBTRACT, f"{a} minus {b} is {a - b}.", rng, key=pair_key("-", a, b), a=a, b=b)


def multiplication(rng: random.Random) -> Question:
    a, b = rng.randint(0, MAX_FACTOR), rng.randint(0, MAX_FACTOR)
    return ask("multiplication", MULTIPLY, f"{a} times {b} is {a * b}.", rng, a=a, b=b)


def comparison(rng: random.Random) -> Question:
    a, b = rng.sample(range(BOUND), 2)
    low, high = sorted((a, b))
    key = pair_key("<", a, b)
    if rng.random() < 0.5:
        return ask("comparison", _LARGER, f"{high} is larger than {low}.", rng, key=key, a=a, b=b)
    return ask("comparison", _SMALLER, f"{low} is smaller than {high}.", rng, key=key, a=a, b=b)
