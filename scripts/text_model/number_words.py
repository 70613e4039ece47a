"""Numbers in English words."""

from __future__ import annotations

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen"),
    *("fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """Return a number from 0 to 199 in words, such as `one hundred and forty-two`. Raises `ValueError`."""
    if not 0 <= number <= 199:
        raise ValueError(f"{number} is not from 0 to 199")
    if number >= 100:
        return "one hundred" + (f" and {in_words(number - 100)}" if number > 100 else "")
    if number < 20:
        return (DIGITS + _TEENS)[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{DIGITS[ones]}" if ones else "")
