#!/usr/bin/env python3
"""Fail when a module, class, function or field of the product has a word in its name that is not a term of the field.

    python -m scripts.check_names

The words are in `scripts/denied_words.txt`, each with the reason or the term to use. A name is split into its words:
`TaskStore.mark_started` is task, store, mark, started. Locals and parameters are free.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "controller", "host", "loadbalancer", "muster", "scripts", "tests/support", "wire", "worker")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def denied_words(text: str) -> dict[str, str]:
    """Denied word to the term to use: lines of `word: term`; `#` starts a comment."""
    lines = (line.partition("#")[0] for line in text.splitlines())
    pairs = (line.partition(":") for line in lines if line.strip())
    return {word.strip(): term.strip() for word, _, term in pairs}


def names_in(file: Path) -> Iterator[tuple[int, str]]:
    """Line and name of the module itself and of each class, function and class attribute in it."""
    yield 1, file.stem
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield item.lineno, item.target.id


def words_of(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def problems(root: Path, denied: dict[str, str]) -> Iterator[str]:
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            for line, name in names_in(file):
                for word in denied.keys() & set(words_of(name)):
                    yield f"{file.relative_to(root)}:{line}: {name}: '{word}' is no term of the field; {denied[word]}"


def main() -> int:
    denied = denied_words((ROOT / "scripts" / "denied_words.txt").read_text())
    found = list(problems(ROOT, denied))
    print("\n".join(found) if found else f"names: none of {len(denied)} denied words")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
