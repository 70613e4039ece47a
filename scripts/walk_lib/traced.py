"""Run a program with a profile hook: `python traced.py OUT TREE PROGRAM [argument ...]`.

Writes a JSON list of calls to OUT when the program ends: time, thread, file, function, and the index of the call that
it came from, or -1. Imports nothing of the product, so that it can run any commit.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

_PACKAGES = ("configs", "controller", "host", "loadbalancer", "muster", "wire", "worker")


class Tracer:
    """Records each call of a function of the product under `tree`."""

    def __init__(self, tree: Path) -> None:
        self.calls: list[tuple[float, int, str, str, int]] = []
        self._prefixes = tuple(f"{tree}/{package}/" for package in _PACKAGES)
        self._tree = f"{tree}/"
        self._stacks: dict[int, list[int]] = {}

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """The profile hook: coroutines show a call at each resumption and a return at each await."""
        del arg
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(self._prefixes):
            return
        if code.co_name.startswith("<") and code.co_name != "<lambda>":
            return
        thread = threading.get_ident()
        stack = self._stacks.setdefault(thread, [])
        if event == "return":
            if stack:
                stack.pop()
            return
        file = code.co_filename.removeprefix(self._tree)
        self.calls.append((time.monotonic(), thread, file, code.co_qualname, stack[-1] if stack else -1))
        stack.append(len(self.calls) - 1)


def main() -> None:
    out, tree, program, *arguments = sys.argv[1:]
    sys.path.insert(0, tree)
    module = importlib.import_module(f"{program}.__main__")
    tracer = Tracer(Path(tree))
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        module.main(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        Path(out).write_text(json.dumps(tracer.calls))
        os._exit(0)


if __name__ == "__main__":
    main()
