"""Trains the classifier and writes `model.safetensors` beside this file (7 seconds, 38 KB).

    pip install scikit-learn
    python examples/digits_classifier/train.py

scikit-learn would store a fitted classifier as a pickle, which runs code when it is loaded. Only the two layers'
numbers are stored here; `engine.py` needs NumPy to apply them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

#: Hidden units.
HIDDEN = 96
MODEL = Path(__file__).with_name("model.safetensors")


def main() -> None:
    images, digits = load_digits(return_X_y=True)
    known, new, known_digits, new_digits = train_test_split(images / 16.0, digits, test_size=0.25, random_state=0)
    classifier = MLPClassifier((HIDDEN,), alpha=1e-2, max_iter=400, random_state=0).fit(known, known_digits)
    names = ("hidden.weight", "output.weight"), ("hidden.bias", "output.bias")
    layers = zip(*names, classifier.coefs_, classifier.intercepts_, strict=True)
    tensors = {name: value for weight, bias, w, b in layers for name, value in ((weight, w), (bias, b))}
    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}, MODEL)
    print(f"{classifier.score(new, new_digits):.1%} of {len(new)} new images are classified correctly")
    print(f"{MODEL.name}: {MODEL.stat().st_size} bytes")


if __name__ == "__main__":
    main()
