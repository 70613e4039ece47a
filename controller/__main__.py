"""`python -m controller`: serves; with a command's name first, does that instead."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from controller import serve

#: What there is beside serving, by name. Each imports what it needs when it is called: most of it is of no use here.
COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(words[0]) if words else None
    return serve.main(words) if command is None else command(words[1:])


if __name__ == "__main__":
    sys.exit(main())
