"""Classifies an image of a handwritten digit: an image in, the digit and its probabilities out.

It takes any image with one digit, such as those that the built-in model `digits` generates: any ink on any paper.
`train.py` has made the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

Array = NDArray[np.float32]
#: Share of the side that the generator leaves free around a digit: 1 of 10 cells.
_MARGIN = 0.1
_SIDE = 8


class Digit(TypedDict):
    """The most probable digit, and the probability of each from 0 to 9."""

    digit: int
    probabilities: list[float]


class DigitClassifier:
    """A network of two layers on images of 8 x 8 pixels."""

    max_batch_size = 64

    def load(self, device: str) -> None:
        """Read the weights. NumPy computes on the CPU, whatever the device."""
        del device
        weights = load_file(Path(__file__).with_name("model.safetensors"))
        self._hidden = weights["hidden.weight"], weights["hidden.bias"]
        self._output = weights["output.weight"], weights["output.bias"]

    def predict(self, items: list[Image.Image]) -> list[Digit]:
        """Classify all images with two matrix products."""
        pixels = np.stack([original(image) for image in items])
        (w1, b1), (w2, b2) = self._hidden, self._output
        scores = np.maximum(pixels @ w1 + b1, 0) @ w2 + b2
        exp = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares = exp / exp.sum(axis=1, keepdims=True)
        return [Digit(digit=int(row.argmax()), probabilities=[round(float(each), 4) for each in row]) for row in shares]

    def example(self) -> Image.Image:
        """An input to measure the best batch with."""
        return Image.new("RGB", (64, 64))


def original(image: Image.Image) -> Array:
    """Return the 64 grey values from 0 to 1 that the classifier was trained on.

    Paper fills the frame, and ink is what differs most from it. Each pixel counts by its place on the line between both
    colours.
    """
    colours = np.asarray(image.convert("RGB"), np.float32) / 255
    top, side = max(colours.shape[0] // 20, 1), max(colours.shape[1] // 20, 1)
    paper = np.median(np.concatenate([colours[:top].reshape(-1, 3), colours[:, :side].reshape(-1, 3)]), axis=0)
    contrast = np.linalg.norm(colours - paper, axis=-1)
    ink = colours[contrast >= 0.7 * np.quantile(contrast, 0.98)].mean(axis=0)
    axis = ink - paper
    stroke = ((colours - paper) @ axis / max(float(axis @ axis), 1e-6)).clip(0, 1)
    margins = round(stroke.shape[0] * _MARGIN), round(stroke.shape[1] * _MARGIN)
    inner = stroke[margins[0] : -margins[0] or None, margins[1] : -margins[1] or None]
    small = Image.fromarray(inner.astype(np.float32)).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    grey: Array = np.asarray(small, np.float32).reshape(-1)
    return grey
