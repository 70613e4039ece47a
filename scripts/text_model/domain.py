"""All that the built-in text model is trained on: categories of questions, and conversations made of them."""

from __future__ import annotations

import random
from collections.abc import Mapping

from scripts.text_model import arithmetic, counting, facts, off_domain, spelling, structured
from scripts.text_model.chat import Message, Segment, Tool, segments, with_reasoning
from scripts.text_model.questions import Generator, Question, is_held_out
from scripts.text_model.tools import ToolUse, report, tool_use, unrelated_tools
from scripts.text_model.words import TOPICS, random_word

#: Generator and share of each category among the questions.
CATEGORIES: Mapping[str, tuple[Generator, float]] = {
    "addition": (arithmetic.addition, 0.07),
    "subtraction": (arithmetic.subtraction, 0.07),
    "multiplication": (arithmetic.multiplication, 0.07),
    "comparison": (arithmetic.comparison, 0.11),
    "counting": (counting.counting, 0.05),
    "neighbours": (counting.neighbours, 0.04),
    "number words": (counting.number_words, 0.09),
    "parity": (counting.parity, 0.07),
    "spelling": (spelling.spelling, 0.08),
    "letters": (spelling.letter_questions, 0.08),
    "Muster": (facts.muster_facts, 0.05),
    "small talk": (facts.small_talk, 0.06),
    "off domain": (off_domain.off_domain, 0.06),
    "JSON": (structured.json_answers, 0.14),
}
_SYSTEM = (
    *("You are a helpful assistant.", "Answer briefly.", "You are a friendly assistant.", "Be concise."),
    *("You are the assistant of Muster.", "Answer in one sentence.", "You are a helpful, harmless assistant."),
)
_SYSTEM_SHARE = 0.2
_TOOLS_SHARE = 0.24
_REASONING_SHARE = 0.05
_MAX_DRAWS = 10_000


def question(rng: random.Random, category: str, *, held_out: bool) -> Question:
    """Return a question of a category, of the held-out ones or of the others.

    Raises `LookupError` if the category seems to have none.
    """
    generate, _ = CATEGORIES[category]
    for _ in range(_MAX_DRAWS):
        drawn = generate(rng)
        if drawn.is_held_out == held_out:
            return drawn
    raise LookupError(f"no question of category {category} is {'held out' if held_out else 'for training'}")


def any_question(rng: random.Random, *, held_out: bool) -> Question:
    """Return a question of a random category, by the shares."""
    [category] = rng.choices(list(CATEGORIES), [share for _, share in CATEGORIES.values()])
    return question(rng, category, held_out=held_out)


def any_tool_use(rng: random.Random, *, held_out: bool) -> ToolUse:
    while is_held_out((drawn := tool_use(rng)).key) != held_out:
        pass
    return drawn


def system_message(rng: random.Random) -> str:
    """Return a system prompt: a usual one, or words that mean nothing to the model."""
    if rng.random() < 0.6:
        return rng.choice(_SYSTEM)
    words = [rng.choice(TOPICS) if rng.random() < 0.5 else random_word(rng) for _ in range(rng.randint(3, 40))]
    return f"You are {' '.join(words)}."


def turns(questions: list[Question]) -> list[Message]:
    """Return questions and answers as messages."""
    pairs = [
        ({"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.answer}) for one in questions
    ]
    return [message for pair in pairs for message in pair]


def _tool_turns(use: ToolUse, rng: random.Random) -> list[Message]:
    messages: list[Message] = [{"role": "user", "content": use.prompt}, {"role": "assistant", "content": use.call}]
    if rng.random() < 0.6:
        messages.append({"role": "tool", "content": use.result})
        messages.append({"role": "assistant", "content": report(use.result)})
    return messages


def conversation(rng: random.Random, number: int) -> list[Segment]:
    """Return a conversation for training: `number` independent questions with their answers, perhaps with tools."""
    asked = [any_question(rng, held_out=False) for _ in range(number)]
    messages = turns(asked)
    tools: tuple[Tool, ...] = ()
    reason_first = False
    kind = rng.random()
    if kind < _TOOLS_SHARE * 0.8:
        use = any_tool_use(rng, held_out=False)
        # Other questions would need a call as well, or not, by the tools.
        tools, messages = use.tools, _tool_turns(use, rng)
    elif kind < _TOOLS_SHARE:
        plain = rng.choice(("addition", "neighbours", "Muster", "parity", "comparison"))
        tools, messages = unrelated_tools(rng), turns([question(rng, plain, held_out=False)])
    elif kind < _TOOLS_SHARE + _REASONING_SHARE:
        if rng.random() < 0.7:
            asked[-1] = question(rng, "addition", held_out=False)
        last = asked[-1]
        reason_first = True
        messages = [*turns(asked)[:-1], {"role": "assistant", "content": with_reasoning(last.reasoning, last.answer)}]
    if rng.random() < _SYSTEM_SHARE:
        messages.insert(0, {"role": "system", "content": system_message(rng)})
    return segments(messages, tools, reason_first=reason_first)
