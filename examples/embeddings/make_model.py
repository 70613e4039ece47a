"""Makes word vectors from the documentation of Python's standard library, and writes `model.safetensors` (a minute).

    python examples/embeddings/make_model.py

Words that occur in the same places get similar vectors: counts of pairs within a window, their positive pointwise
mutual information, and its largest singular vectors (Levy and Goldberg, "Neural word embedding as implicit matrix
factorization", 2014). It needs the packages of Muster and no download.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import track
from safetensors.numpy import save_file
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.linalg import svds

MODEL = Path(__file__).with_name("model.safetensors")
WORDS, DIMENSIONS, WINDOW = 2000, 64, 10
_WORD = re.compile(r"[a-z]{2,}")
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "turtledemo"}


def texts() -> Iterator[str]:
    """Yield every docstring of the standard library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    for file in track([file for file in files if not _LEFT_OUT & set(file.parts)], "reading"):
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # files that test the parser
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def pairs(sentences: list[list[int]], count: int) -> csr_matrix:
    """Count the pairs of words that are at most `WINDOW` apart, in both orders."""
    rows: list[int] = []
    columns: list[int] = []
    for words in sentences:
        for place, word in enumerate(words):
            near = words[place + 1 : place + 1 + WINDOW]
            rows += [word] * len(near) + near
            columns += near + [word] * len(near)
    return coo_matrix((np.ones(len(rows)), (rows, columns)), (count, count)).tocsr()


def vectors(counts: csr_matrix) -> np.ndarray:
    """Return a vector of unit length for each word, `(count, DIMENSIONS)`."""
    total = counts.sum()
    frequencies = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = frequencies**0.75 / (frequencies**0.75).sum()
    found = counts.tocoo()
    information = np.log(found.data / total / (frequencies[found.row] / total * smoothed[found.col]))
    positive = coo_matrix((information.clip(0), (found.row, found.col)), found.shape).tocsr()
    u, s, _ = svds(positive, k=DIMENSIONS, v0=np.ones(positive.shape[0]))
    made = u * np.sqrt(s)
    unit: np.ndarray = made / np.linalg.norm(made, axis=1, keepdims=True).clip(1e-3)
    return unit


def main() -> None:
    spoken = [_WORD.findall(text.lower()) for text in texts()]
    frequencies = Counter(word for words in spoken for word in words)
    words = [word for word, _ in frequencies.most_common(WORDS)]
    number = {word: index for index, word in enumerate(words)}
    made = vectors(pairs([[number[word] for word in each if word in number] for each in spoken], len(words)))
    shares = np.array([frequencies[word] for word in words]) / frequencies.total()
    # safetensors writes the memory as it lies: it has to be in C order.
    tensors = {"vectors": np.ascontiguousarray(made, np.float16), "shares": shares.astype(np.float32)}
    save_file(tensors, MODEL, {"words": "\n".join(words)})
    print(f"{len(words)} words from {len(spoken)} texts; {MODEL.name}: {MODEL.stat().st_size} bytes")


if __name__ == "__main__":
    main()
