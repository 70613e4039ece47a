"""Conversations with tools: the model calls a tool that fits the question, and reports its result."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from scripts.text_model.arithmetic import ADD, MAX_FACTOR, MULTIPLY, SUBTRACT, operands
from scripts.text_model.chat import Tool, tool_call
from scripts.text_model.questions import normalized, vary
from scripts.text_model.spelling import SPELL
from scripts.text_model.words import SPELLED

_PAIRS = (("a", "b"), ("x", "y"))
_WEATHER = ("What is the weather in {c}?", "How is the weather in {c}?", "Weather in {c}?", "Is it raining in {c}?")
_CITY_NAMES = "Paris London Berlin Tokyo Madrid Rome Vienna Oslo"
_CITIES = _CITY_NAMES.split()


class ToolUse(NamedTuple):
    """A question, the tools on offer, and the call that answers it."""

    prompt: str
    tools: tuple[Tool, ...]
    call: str
    key: str
    #: What the tool returns.
    result: str


class _Case(NamedTuple):
    """A question for one tool."""

    prompt: str
    key: str
    arguments: dict[str, Any]
    result: object


def function_tool(name: str, description: str, parameters: Mapping[str, str]) -> Tool:
    """Return a tool in OpenAI's form. `parameters`: JSON type by name; all are required."""
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def _binary(
    name: str, phrases: tuple[str, ...], apply: Callable[[int, int], int]
) -> Callable[[random.Random], tuple[Tool, _Case]]:
    def make(rng: random.Random) -> tuple[Tool, _Case]:
        left, right = rng.choice(_PAIRS)
        kind = rng.choice(("integer", "number"))
        tool = function_tool(
            name,
            f"{name.capitalize()} two {rng.choice(('numbers.', 'integers.', 'numbers'))}",
            {left: kind, right: kind},
        )
        a, b = rng.randint(0, MAX_FACTOR), rng.randint(0, MAX_FACTOR)
        if name != "multiply":
            a, b = operands(rng, ordered=True)
        text = rng.choice(phrases).format(a=a, b=b)
        return tool, _Case(vary(text, rng), normalized(text), {left: a, right: b}, apply(a, b))

    return make


def _spell(rng: random.Random) -> tuple[Tool, _Case]:
    name = rng.choice(("word", "text"))
    tool = function_tool("spell", rng.choice(("Spell a word.", "Return the letters of a word.")), {name: "string"})
    word = rng.choice(SPELLED)
    text = rng.choice(SPELL).format(w=word)
    return tool, _Case(vary(text, rng), normalized(text), {name: word}, "done")


def _weather(rng: random.Random) -> tuple[Tool, _Case]:
    name = rng.choice(("city", "location"))
    description = rng.choice(("Get the weather of a city.", "Get current weather", "Returns the weather."))
    tool = function_tool("get_weather", description, {name: "string"})
    city = rng.choice(_CITIES)
    text = rng.choice(_WEATHER).format(c=city)
    return tool, _Case(text, normalized(text), {name: city}, f"{rng.randint(0, 35)} degrees")


_TOOLS = (
    _binary("add", ADD, lambda a, b: a + b),
    _binary("subtract", SUBTRACT, lambda a, b: a - b),
    _binary("multiply", MULTIPLY, lambda a, b: a * b),
    _spell,
    _weather,
)
_WEIGHTS = (4, 1, 1, 3, 2)


def tool_use(rng: random.Random) -> ToolUse:
    """A question with one to three tools, one of which fits."""
    chosen = rng.choices(range(len(_TOOLS)), _WEIGHTS)[0]
    tool, case = _TOOLS[chosen](rng)
    others = rng.sample([n for n in range(len(_TOOLS)) if n != chosen], rng.choice((0, 0, 1, 1, 2)))
    tools = [tool, *(_TOOLS[n](rng)[0] for n in others)]
    rng.shuffle(tools)
    name = tool["function"]["name"]
    result = json.dumps({"result": case.result}) if rng.random() < 0.5 else str(case.result)
    return ToolUse(case.prompt, tuple(tools), tool_call(name, case.arguments), case.key, result)


def report(result: str) -> str:
    """Return the answer to the result of a tool."""
    try:
        value = json.loads(result)["result"]
    except (ValueError, TypeError, KeyError):
        value = result
    return f"The result is {value}."


def unrelated_tools(rng: random.Random) -> tuple[Tool, ...]:
    """Return tools that answer no question but one for themselves: spelling and weather."""
    return tuple(make(rng)[0] for make in rng.sample((_spell, _weather), rng.choice((1, 2))))
