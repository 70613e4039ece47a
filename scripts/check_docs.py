#!/usr/bin/env python3
"""Fail when a page names a file that is not there, or when its prose is hard to read.

    python -m scripts.check_docs

Checked are the paths in Markdown pages, the links between them, the length of a line of prose (at most 120
characters) and the mean length of a page's sentences (under 16 words). Tables, code and the changelog's history are
no prose.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_LINE = 120
MAX_MEAN_WORDS = 16.0
_TOP = "configs|controller|docs|loadbalancer|muster|scripts|tests|wire|worker"
_PATH = re.compile(rf"`((?:{_TOP})/[\w./-]+)`|(?:^|[\s(])((?:{_TOP})/[\w/-]+\.(?:py|md|yaml|json|svg|png))\b")
_MODULE = re.compile(r"python -m (scripts(?:\.\w+)+)")
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
_CODE = re.compile(r"```.*?```", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z*`\[])")


def paths_in(text: str) -> set[str]:
    """Every file or folder of the repository that a page names."""
    paths = {a or b for a, b in _PATH.findall(text)}
    modules = {name.replace(".", "/") + ".py" for name in _MODULE.findall(text)}
    # Results are what a command writes: they need not be there yet.
    return {path.rstrip("./") for path in paths if not path.startswith("scripts/bench/results/")} | modules


def prose_of(text: str) -> list[str]:
    """The paragraphs and list items of a page, each as one line."""
    blocks: list[str] = []
    for line in _CODE.sub("\n\n", text).splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith(("#", "|", "![", "<")):
            blocks.append("")
        elif stripped.startswith(("- ", "* ")) or re.match(r"\d+\. ", stripped) or not blocks or not blocks[-1]:
            blocks.append(stripped)
        else:
            blocks[-1] += " " + stripped
    return [block for block in blocks if block]


def mean_words(text: str) -> float:
    """The mean number of words in the sentences of a page."""
    sentences = [part for block in prose_of(text) for part in _SENTENCE_END.split(block)]
    return sum(len(part.split()) for part in sentences) / max(1, len(sentences))


def problems(page: Path, tracked: set[str]) -> Iterator[str]:
    """What is wrong with one page."""
    text, name = page.read_text(), page.relative_to(ROOT)
    history = name.name == "CHANGELOG.md"
    if not history:
        for path in sorted(paths_in(text)):
            package = f"{path.removesuffix('.py')}/__main__.py"
            if not {path, package} & tracked and not any(file.startswith(f"{path}/") for file in tracked):
                yield f"{name}: {path} does not exist"
    for link in _LINK.findall(text):
        if not (page.parent / link).exists():
            yield f"{name}: the link to {link} leads nowhere"
    if not history and (mean := mean_words(text)) >= MAX_MEAN_WORDS:
        yield f"{name}: sentences have {mean:.1f} words on average; allowed: under {MAX_MEAN_WORDS:g}"
    for number, line in enumerate(_CODE.sub(lambda code: "\n" * code[0].count("\n"), text).splitlines(), 1):
        if len(line) > MAX_LINE and not line.lstrip().startswith(("|", "![", "<")):
            yield f"{name}:{number}: {len(line)} characters; allowed: {MAX_LINE}"


def main() -> int:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    pages = [ROOT / file for file in files if file.endswith(".md")]
    found = [problem for page in pages for problem in problems(page, set(files))]
    print("\n".join(found) if found else f"docs: {len(pages)} pages name only what exists and read easily")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
