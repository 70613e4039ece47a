"""`python -m controller`: serves; with a command's name first, does that instead."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence

from controller import serve


def _simulate(words: Sequence[str]) -> int:
    from controller.simulator.cli import main as simulate

    return simulate(words)


def _tune(words: Sequence[str]) -> int:
    from controller.simulator.tune import main as tune

    return tune(words)


def _status(words: Sequence[str]) -> int:
    from controller.cli.status import main as status

    return status(words)


def _order(verb: str, words: Sequence[str]) -> int:
    from controller.cli import commands

    orders = {"scale": commands.scale, "pause": commands.pause, "resume": commands.resume, "reload": commands.reload}
    return orders[verb](words)


#: What there is beside serving, by name. Each imports what it needs when it is called: most of it is of no use here.
COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "simulate": _simulate,
    "tune": _tune,
    "status": _status,
    **{verb: functools.partial(_order, verb) for verb in ("scale", "pause", "resume", "reload")},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(words[0]) if words else None
    return serve.main(words) if command is None else command(words[1:])


if __name__ == "__main__":
    sys.exit(main())
