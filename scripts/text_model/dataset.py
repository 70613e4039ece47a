"""Packed rows of tokens: several conversations share a row and do not see each other."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from scripts.text_model.domain import conversation

#: Label of a token without loss.
IGNORED = -100


class Example(NamedTuple):
    """A conversation as tokens, with the label of each: itself if the model writes it."""

    tokens: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """Rows of equal length, padded with token 0."""

    #: `(B, L)`, int64.
    tokens: torch.Tensor
    #: `(B, L)`, int64: `IGNORED`, or the token that the model is to write at this place.
    labels: torch.Tensor
    #: `(B, L)`, int64: place in the conversation.
    positions: torch.Tensor
    #: `(B, 1, L, L)`, bool: whether a token (first L) sees another (second L).
    mask: torch.Tensor


def example(tokenizer: Tokenizer, rng: random.Random, number: int) -> Example:
    """Return a conversation of `number` questions."""
    tokens: list[int] = []
    labels: list[int] = []
    for segment in conversation(rng, number):
        ids = tokenizer.encode(segment.text, add_special_tokens=False).ids
        tokens += ids
        labels += ids if segment.is_answer else [IGNORED] * len(ids)
    return Example(tokens, labels)


def number_of_questions(rng: random.Random, length: int) -> int:
    """Return how many questions a conversation has: mostly one, sometimes as many as fill a row of `length`."""
    kind = rng.random()
    if kind < 0.6:
        return 1
    return rng.randint(2, 5) if kind < 0.9 else rng.randint(5, max(5, length // 28))


class BatchGenerator:
    """Generates batches without end."""

    def __init__(self, tokenizer: Tokenizer, seed: int, rows: int, length: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._rows = rows
        self._length = length
        #: Examples that did not fit into the rows before.
        self._spare: list[Example] = []

    def next_batch(self) -> Batch:
        packed = [self._row() for _ in range(self._rows)]
        return collate(packed, self._length)

    def _row(self) -> list[Example]:
        row: list[Example] = []
        room = self._length
        misses = 0
        while misses < 4:
            fitting = next((one for one in self._spare if len(one.tokens) <= room), None)
            if fitting is not None:
                self._spare.remove(fitting)
            else:
                fitting = example(self._tokenizer, self._rng, number_of_questions(self._rng, self._length))
            if len(fitting.tokens) <= room:
                row.append(fitting)
                room -= len(fitting.tokens)
            else:
                misses += 1
                if len(fitting.tokens) <= self._length and len(self._spare) < 64:
                    self._spare.append(fitting)
        return row


def collate(rows: list[list[Example]], length: int) -> Batch:
    """Return the rows as tensors."""
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    owner = torch.arange(length).neg().repeat(len(rows), 1) - 1  # padding sees itself only
    for number, row in enumerate(rows):
        start = 0
        for which, one in enumerate(row):
            end = start + len(one.tokens)
            tokens[number, start:end] = torch.tensor(one.tokens)
            labels[number, start:end] = torch.tensor(one.labels)
            positions[number, start:end] = torch.arange(end - start)
            owner[number, start:end] = which
            start = end
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (owner[:, :, None] == owner[:, None, :]) & causal
    return Batch(tokens, labels, positions, mask[:, None])
