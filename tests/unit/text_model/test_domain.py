"""Questions of the built-in text model: each answer is checked by a computation from the prompt alone."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator

import pytest

from scripts.text_model.chat import END, segments
from scripts.text_model.domain import CATEGORIES, any_tool_use, conversation, question, system_message
from scripts.text_model.facts import ACTIONS, CHAT, TERMS
from scripts.text_model.number_words import in_words
from scripts.text_model.off_domain import DECLINED
from scripts.text_model.questions import Question, is_held_out, normalized
from scripts.text_model.tools import report
from scripts.text_model.words import SPELLED

_SMALL = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen
"""
_ONES = _SMALL.split()
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: number for number, word in enumerate(_ONES)} | dict(zip(_TENS, range(20, 100, 10), strict=True))


def numbers_in(text: str) -> list[int]:
    """Return the numbers of a text, in digits or in words, in order."""
    if found := re.findall(r"\d+", text):
        return [int(each) for each in found]
    groups: list[int] = []
    open_group = False
    for word in re.findall(r"[a-z]+", text.lower()):
        if word == "hundred" and open_group:
            groups[-1] *= 100
        elif word in _VALUES and open_group:
            groups[-1] += _VALUES[word]
        elif word in _VALUES:
            groups.append(_VALUES[word])
        # "one hundred and forty-two" is one number, "two and three" are two.
        open_group = (word in _VALUES or word == "hundred") or (word == "and" and open_group and groups[-1] >= 100)
    return groups


def result_of(answer: str) -> int:
    """Return the number after "is", in digits or in words."""
    result = answer.rpartition(" is ")[2].rstrip(".")
    return int(result) if result.lstrip("-").isdigit() else numbers_in(result)[0]


def is_addition(prompt: str, answer: str) -> bool:
    return sum(numbers_in(prompt)) == result_of(answer)


def is_subtraction(prompt: str, answer: str) -> bool:
    first, second = numbers_in(prompt)
    if re.search(r"subtract|take|less than", prompt, re.IGNORECASE):
        first, second = second, first
    return first - second == result_of(answer)


def is_multiplication(prompt: str, answer: str) -> bool:
    first, second = numbers_in(prompt)
    return first * second == result_of(answer)


def is_comparison(prompt: str, answer: str) -> bool:
    small = re.search(r"smaller|less", prompt, re.IGNORECASE) is not None
    chosen = sorted(numbers_in(prompt))[0 if small else 1]
    return answer == f"The {'smaller' if small else 'larger'} number is {chosen}."


def is_counting(prompt: str, answer: str) -> bool:
    if "digit" in prompt.lower():
        return answer == "The ten digits are " + ", ".join(_ONES[:10]) + "."
    said = [numbers_in(part)[0] for part in answer.split(",")]
    # "Count from 1 to two": digits and words.
    number = max(numbers_in(prompt) + numbers_in(re.sub(r"\d+", "", prompt)))
    down = re.search(r"down|backwards", prompt, re.IGNORECASE) is not None
    return said == (list(range(number, 0, -1)) if down else list(range(1, number + 1)))


def is_neighbours(prompt: str, answer: str) -> bool:
    [number] = numbers_in(prompt)
    before = re.search(r"before|precedes", prompt, re.IGNORECASE) is not None
    return result_of(answer) == (number - 1 if before else number + 1) and ("previous" in answer) is before


def is_number_words(prompt: str, answer: str) -> bool:
    kind = "words" if re.search(r"word", prompt, re.IGNORECASE) else "digits"
    result = answer.removeprefix(f"In {kind} it is ")
    return numbers_in(prompt) == numbers_in(result) and result[0].isdigit() is (kind == "digits")


def is_parity(prompt: str, answer: str) -> bool:
    [number] = numbers_in(prompt)
    return answer == f"It is {['even', 'odd'][number & 1]}."


def is_spelling(prompt: str, answer: str) -> bool:
    letters = answer.removeprefix("It is spelled ").rstrip(".").split(" ")
    return "".join(letters).lower() in re.findall(r"[a-z]+", prompt.lower()) and all(len(each) == 1 for each in letters)


def is_letters(prompt: str, answer: str) -> bool:
    words = re.findall(r"[a-z]+", prompt.lower())
    if found := re.fullmatch(r"It has (\d+) letters\.", answer):
        return any(word in SPELLED and sum(1 for _ in word) == int(found[1]) for word in words)
    found = re.fullmatch(r"The (first|last) letter is ([A-Z])\.", answer)
    assert found is not None
    place = 0 if found[1] == "first" else -1
    return found[1] in words and any(word in SPELLED and list(word.upper())[place] == found[2] for word in words)


def is_fact(prompt: str, answer: str) -> bool:
    names = [name for known, text in (*TERMS, *ACTIONS) for name in known if text == answer]
    return any(name.lower() in prompt.lower() for name in names)


def is_small_talk(prompt: str, answer: str) -> bool:
    phrases = [phrase for known, _, text in CHAT for phrase in known if text == answer]
    return any(normalized(phrase) in normalized(prompt) for phrase in phrases)


def is_declined(prompt: str, answer: str) -> bool:
    return bool(prompt) and answer == DECLINED


def is_json(prompt: str, answer: str) -> bool:
    value = json.loads(answer)
    assert json.dumps(value) == answer
    if "letters" in value:
        return "".join(value["letters"]).lower() in re.findall(r"[a-z]+", prompt.lower())
    if "words" in value:
        return numbers_in(value["words"]) == numbers_in(prompt)
    [(key, number)] = value.items()
    if key not in {"sum", "difference", "product", "next"}:
        assert re.search(rf"\b{key}\b", prompt.lower())
    if isinstance(number, str):
        return numbers_in(number) == numbers_in(prompt)
    asked = numbers_in(prompt)
    if len(asked) == 1:
        return bool(asked[0] + 1 == number)
    first, second = asked
    return number in {first + second, abs(first - second), first * second}


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "addition": is_addition,
    "subtraction": is_subtraction,
    "multiplication": is_multiplication,
    "comparison": is_comparison,
    "counting": is_counting,
    "neighbours": is_neighbours,
    "number words": is_number_words,
    "parity": is_parity,
    "spelling": is_spelling,
    "letters": is_letters,
    "Muster": is_fact,
    "small talk": is_small_talk,
    "off domain": is_declined,
    "JSON": is_json,
}


def drawn(category: str, number: int = 300) -> Iterator[Question]:
    rng = random.Random(category)
    for n in range(number):
        yield question(rng, category, held_out=n % 10 == 0)


@pytest.mark.parametrize("category", CATEGORIES)
def test_answer_follows_from_the_prompt(category: str) -> None:
    for one in drawn(category):
        assert CHECKS[category](one.prompt, one.answer), one
        assert one.category == category


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_prompt_has_two_answers(category: str) -> None:
    answers: dict[str, str] = {}
    for one in drawn(category, 600):
        assert answers.setdefault(one.prompt, one.answer) == one.answer


def test_no_prompt_is_in_two_categories() -> None:
    answers: dict[str, str] = {}
    for category in CATEGORIES:
        for one in drawn(category):
            assert answers.setdefault(one.prompt, one.answer) == one.answer, one


def test_equal_seeds_give_equal_conversations() -> None:
    first, second, other = (
        [conversation(random.Random(seed), 3) for seed in seeds] for seeds in (range(20), range(20), range(20, 40))
    )
    assert first == second != other


def test_held_out_questions_are_in_no_conversation() -> None:
    rng = random.Random(5)
    held_out = {question(rng, category, held_out=True).prompt for category in CATEGORIES for _ in range(60)}
    text = "".join(part.text for _ in range(800) for part in conversation(rng, 2))
    assert not [prompt for prompt in held_out if f"user\n{prompt}{END}" in text]


def test_style_does_not_change_what_is_held_out() -> None:
    assert normalized("What is 3 + 4?") == normalized("WHAT IS 3 + 4")
    assert normalized("What is 3 + 4?") != normalized("What is 3 - 4?")


def test_a_tenth_is_held_out() -> None:
    share = sum(is_held_out(str(n)) for n in range(5000)) / 5000
    assert 0.08 < share < 0.12


@pytest.mark.parametrize("number", range(200))
def test_number_words_can_be_read_back(number: int) -> None:
    assert numbers_in(in_words(number)) == [number]


@pytest.mark.parametrize("number", [-1, 200])
def test_numbers_without_words_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="not from 0 to 199"):
        in_words(number)


def test_tool_call_fits_the_schema_of_one_tool() -> None:
    rng = random.Random(2)
    for _ in range(300):
        use = any_tool_use(rng, held_out=False)
        call = json.loads(use.call.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
        [tool] = [each["function"] for each in use.tools if each["function"]["name"] == call["name"]]
        assert list(call["arguments"]) == tool["parameters"]["required"]
        for name, value in call["arguments"].items():
            assert isinstance(value, str) is (tool["parameters"]["properties"][name]["type"] == "string")
            assert str(value).lower() in use.prompt.lower()


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        ("7", "The result is 7."),
        ('{"result": 7}', "The result is 7."),
        ('{"other": 7}', 'The result is {"other": 7}.'),
        ("21 degrees", "The result is 21 degrees."),
        ("[1]", "The result is [1]."),
    ],
)
def test_result_of_a_tool_is_reported(result: str, answer: str) -> None:
    assert report(result) == answer


def test_only_answers_have_loss() -> None:
    messages = [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "1 plus 1 is 2."},
    ]
    parts = segments([{"role": "system", "content": system_message(random.Random(0))}, *messages])
    assert [part.text for part in parts if part.is_answer] == [f"1 plus 1 is 2.{END}"]
