"""Requests with the lengths of a recorded trace, scaled down to what a CPU can generate. Standard library only."""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

#: Ids of ordinary tokens in the vocabularies of common models.
_FIRST_TOKEN, _LAST_TOKEN = 300, 20_000

_QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "Why is the sky blue? Explain it to a child in a few words, please.",
    "2+2=?",
    "Who wrote Hamlet?",
    "List two fruits and two animals that live in the wood.",
    "Say hello in Spanish.",
)


class TokenRequest(NamedTuple):
    """A prompt, and the exact number of tokens to generate."""

    number: int
    prompt: list[int]
    tokens: int
    #: Seconds after the start; 0 in a closed loop.
    arrives_at: float = 0.0


def read_lengths(trace: Path | None, count: int) -> list[tuple[int, int]]:
    """Return (prompt tokens, generated tokens) of the first requests of a trace; without one, of its distribution."""
    if trace is None:
        rng = random.Random(7)
        return [(int(rng.lognormvariate(6.8, 0.9)) + 1, int(rng.lognormvariate(4.9, 0.8)) + 1) for _ in range(count)]
    with trace.open() as file:
        rows = list(itertools.islice(csv.DictReader(file), count))
    return [(int(row["input_tokens"]), int(row["output_tokens"])) for row in rows]


def make_requests(
    lengths: Sequence[tuple[int, int]],
    scales: tuple[float, float],
    bounds: tuple[int, int],
    rate: float | None = None,
) -> list[TokenRequest]:
    """Return requests with these lengths times `scales`, cut at the bounds; with a rate, they arrive at random."""
    rng, at, requests = random.Random(1), 0.0, []
    for number, (prompt, tokens) in enumerate(lengths):
        if rate is not None:
            at += rng.expovariate(rate)
        length = min(max(round(prompt * scales[0]), 4), bounds[0])
        ids = [rng.randint(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(length)]
        requests.append(TokenRequest(number, ids, min(max(round(tokens * scales[1]), 2), bounds[1]), at))
    return requests


def sweep_requests(batch: int, prompt: int, tokens: int) -> list[TokenRequest]:
    """Return equal work for each place of a batch."""
    rng = random.Random(batch)
    return [
        TokenRequest(number, [rng.randint(_FIRST_TOKEN, _LAST_TOKEN) for _ in range(prompt)], tokens)
        for number in range(batch)
    ]


def admission_cells(batches: Sequence[int], intervals: Sequence[int | None]) -> list[tuple[int, int | None]]:
    """Return (batch size, steps between two admissions) of a sweep. A batch of one is admitted to when it is empty."""
    return [(batch, interval) for batch in batches for interval in (intervals if batch > 1 else intervals[:1])]


def chat_requests(tokenizer: Any, number: int, tokens: int) -> list[TokenRequest]:
    """Return so many short chats for the tokenizer's own template; all are different."""
    questions = [
        f"{_QUESTIONS[place % len(_QUESTIONS)]}{' Why?' * (place // len(_QUESTIONS))}" for place in range(number)
    ]
    chats = [[{"role": "user", "content": question}] for question in questions]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    return [TokenRequest(place, prompt, tokens) for place, prompt in enumerate(prompts)]
