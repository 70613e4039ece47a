"""The data set of the built-in model: scikit-learn's handwritten digits in colour, with prompts.

`load_digits` has 1797 grey images of 8 x 8 pixels. Each becomes a smooth stroke mask of 64 x 64 pixels, which combines
any ink with any paper. A prompt names the digit and optionally ink and paper. Omitted colours have fixed defaults, so
that every prompt has exactly one correct image.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch.nn import functional

SIZE = 64
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKS = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.65, 0.20),
    "blue": (0.15, 0.30, 0.90),
    "orange": (1.0, 0.60, 0.05),
}
PAPERS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "navy": (0.05, 0.05, 0.30)}
# Pairs with too little contrast to be read.
UNREADABLE = {("white", "white"), ("black", "black"), ("black", "navy"), ("blue", "navy")}
PAIRS = tuple((ink, paper) for ink in INKS for paper in PAPERS if (ink, paper) not in UNREADABLE)

PLAIN = ("{d}", "a handwritten {d}", "the digit {d}", "a {d}", "number {d}")
INKED = ("a {i} {d}", "a handwritten {d} in {i} ink", "{i} {d}", "the digit {d} in {i}")
FULL = ("a {i} {d} on {p} paper", "the digit {d} in {i} ink on {p} paper", "{i} {d} on {p}", "a {d}, {i} on {p}")
PAPERED = ("a handwritten {d} on {p} paper", "a {d} on {p} paper")
#: Colours with the article "an".
_AN = re.compile(r"\ba (?=orange|eight|8)")


def default_paper(ink: str) -> str:
    """Return the default paper for an ink: black, or white for black ink."""
    return "white" if ink == "black" else "black"


def default_ink(paper: str) -> str:
    """Return the default ink for a paper: white, or black on white paper."""
    return "black" if paper == "white" else "white"


def describe(digit: int, ink: str, paper: str, rng: np.random.Generator) -> str:
    """Return a random prompt for this digit in this ink on this paper."""
    templates = list(FULL)
    if paper == default_paper(ink):
        templates += INKED
    if ink == default_ink(paper):
        templates += PAPERED
    if (ink, paper) == ("white", "black"):
        templates += PLAIN * 2  # the pair of all defaults
    name = WORDS[digit] if rng.random() < 0.75 else str(digit)
    template = templates[int(rng.integers(len(templates)))]
    prompt = template.format(d=name, i=ink, p=paper)
    # Users write "a orange" as well as "an orange": train on both.
    return _AN.sub("an ", prompt) if rng.random() < 0.7 else prompt


def all_prompts() -> list[str]:
    """Return every prompt of the training, for the tokenizer."""
    templates = PLAIN + INKED + FULL + PAPERED
    names = [*WORDS, *map(str, range(10))]
    prompts = [t.format(d=d, i=i, p=p) for t in templates for d in names for i in INKS for p in PAPERS]
    return prompts + [_AN.sub("an ", prompt) for prompt in prompts if _AN.search(prompt)]


def stroke_masks() -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return stroke masks `(1797, 64, 64)` in [0, 1] and their digits."""
    data = load_digits()
    small = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0
    framed = functional.pad(small, (1, 1, 1, 1))
    smooth = functional.interpolate(framed, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    crisp = torch.sigmoid((smooth.clamp(0, 1) - 0.45) * 12.0)
    return crisp[:, 0], data.target.astype(np.int64)


def paint(masks: torch.Tensor, inks: list[str], papers: list[str]) -> torch.Tensor:
    """Paint inks through masks `(B, 64, 64)` onto papers: images `(B, 3, 64, 64)` in [-1, 1]."""
    ink = torch.tensor([INKS[i] for i in inks])[:, :, None, None]
    paper = torch.tensor([PAPERS[p] for p in papers])[:, :, None, None]
    return (paper + masks[:, None] * (ink - paper)) * 2.0 - 1.0


def sample_pair(rng: np.random.Generator) -> tuple[str, str]:
    """Return ink and paper of a training image; a quarter are white on black."""
    if rng.random() < 0.25:
        return "white", "black"
    return PAIRS[int(rng.integers(len(PAIRS)))]


def shift(masks: torch.Tensor, rng: np.random.Generator, pixels: int = 3) -> torch.Tensor:
    """Move each mask by up to `pixels` in both directions; the empty frame prevents clipping."""
    shifted = [torch.roll(m, tuple(rng.integers(-pixels, pixels + 1, 2).tolist()), dims=(0, 1)) for m in masks]
    return torch.stack(shifted)
