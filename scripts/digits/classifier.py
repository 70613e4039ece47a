"""Classifies generated images of digits: digit, ink and paper, without knowing the prompt.

A support vector machine is trained on scikit-learn's images of 8 x 8 pixels. An image of 64 x 64 is converted to that
form by inverting `scripts.digits.data`. Each pixel is projected to the line between paper and ink, and averaged over
the 10 x 10 cells of the framed original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch.nn import functional

from scripts.digits.data import INKS, PAPERS, SIZE, paint, stroke_masks

Array = NDArray[np.float32]
#: Width of the frame in which `shift` never puts ink.
_FRAME = 3


@dataclass(frozen=True)
class DigitLabel:
    """The content of an image."""

    digit: int
    ink: str
    paper: str


class DigitClassifier:
    """A classifier trained on all original images."""

    def __init__(self) -> None:
        data = load_digits()
        self._classifier = _classifier().fit(data.data, data.target)

    def classify(self, images: Array) -> list[DigitLabel]:
        """Classify images `(B, 64, 64, 3)` in [0, 1]. The digit is read with the detected colours."""
        found = [colours(image) for image in images]
        small = [original(image, ink, paper) for image, (ink, paper) in zip(images, found, strict=True)]
        digits = self._classifier.predict(np.stack(small))
        return [
            DigitLabel(int(digit), _nearest(ink, INKS), _nearest(paper, PAPERS))
            for digit, (ink, paper) in zip(digits, found, strict=True)
        ]


def own_accuracy(seed: int = 0) -> float:
    """Return the accuracy on true images of a third of the originals, after training on the others."""
    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.data))
    known, new = order[: 2 * len(order) // 3], order[2 * len(order) // 3 :]
    classifier = _classifier().fit(data.data[known], data.target[known])
    masks, digits = stroke_masks()
    images = paint(masks[torch.from_numpy(new)], ["orange"] * len(new), ["navy"] * len(new))
    shown = ((images + 1) / 2).permute(0, 2, 3, 1).numpy()
    small = np.stack([original(image, *colours(image)) for image in shown])
    return float((classifier.predict(small) == digits[new]).mean())


def colours(image: Array) -> tuple[Array, Array]:
    """Return the mean colours of ink and paper: paper fills the frame, ink differs most from it."""
    inside = np.zeros((SIZE, SIZE), bool)
    inside[_FRAME:-_FRAME, _FRAME:-_FRAME] = True
    paper = np.median(image[~inside], axis=0)
    contrast = np.linalg.norm(image - paper, axis=-1)
    ink = image[contrast >= 0.7 * np.quantile(contrast, 0.98)].mean(axis=0)
    return ink, paper


def original(image: Array, ink: Array, paper: Array) -> Array:
    """Return the 64 grey values, 0 to 16, of the 8 x 8 original of `(64, 64, 3)`."""
    axis = ink - paper
    stroke = ((image - paper) @ axis / max(float(axis @ axis), 1e-6)).clip(0, 1)
    cells = functional.adaptive_avg_pool2d(torch.from_numpy(stroke)[None, None].float(), 10)
    grey: Array = (cells[0, 0, 1:-1, 1:-1] * 16).numpy().reshape(-1)
    return grey


def _classifier() -> SVC:
    return SVC(gamma=0.001, C=10)


def _nearest(colour: Array, named: Mapping[str, tuple[float, float, float]]) -> str:
    return min(named, key=lambda name: float(np.linalg.norm(colour - np.array(named[name]))))
