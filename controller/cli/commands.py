"""`python -m controller scale | pause | resume | reload`: orders to a server that runs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from configs.cli import HelpFormatter
from controller.cli.client import CommandFailed, add_server_options, find_server
from wire.scaling import OrderDone

#: Exit status where the server did not do as asked.
EXIT_FAILED = 1

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_SCALE = """\
Gives a model so many workers for some time, whatever its policy would say:

    python -m controller scale digits 4 --hold 10m

The number stays within the model's min_workers and max_workers, which are changed in the configuration (`reload`).
"""
_PAUSE = "Stops deciding: every model keeps its number of workers until `resume`. Workers that die are still replaced."
_RESUME = "Lets policies decide again: ends the pause and what is held, or only what one model is held at."
_RELOAD = """\
Reads the configuration again. A bad one changes nothing and is explained. Of a good one, what scales models changes at
once; what workers load comes with new workers, one at a time and the new one first; what else differs is listed, and
waits for a restart of the server. SIGHUP to the controller does the same.

    python -m controller reload            what has changed in the configuration
    python -m controller reload digits     also new workers for digits, as for new weights in an old place
"""


def scale(argv: Sequence[str]) -> int:
    """Hold a number of workers. Returns the exit status: 0 done, 1 not done, 2 asked wrongly."""
    parser = _parser("scale", _SCALE)
    parser.add_argument("model")
    parser.add_argument("workers", type=int)
    parser.add_argument("--hold", type=_seconds, default=600.0, metavar="TIME", help="such as 90s, 10m, 2h, 1d")
    args = parser.parse_args(argv)
    return _order(args, "scale", {"model": args.model, "workers": args.workers, "hold_s": args.hold})


def pause(argv: Sequence[str]) -> int:
    """Stop deciding. Returns the exit status."""
    return _order(_parser("pause", _PAUSE).parse_args(argv), "pause", {})


def resume(argv: Sequence[str]) -> int:
    """Decide again. Returns the exit status."""
    parser = _parser("resume", _RESUME)
    parser.add_argument("model", nargs="?", help="end only what this model is held at")
    args = parser.parse_args(argv)
    return _order(args, "resume", {} if args.model is None else {"model": args.model})


def reload(argv: Sequence[str]) -> int:
    """Read the configuration again. Returns the exit status."""
    parser = _parser("reload", _RELOAD)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="replace its workers even if nothing has changed")
    args = parser.parse_args(argv)
    return _order(args, "reload", {"models": args.models})


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m controller {verb}", description=description, formatter_class=HelpFormatter
    )
    add_server_options(parser)
    return parser


def _order(args: argparse.Namespace, verb: str, body: dict[str, Any]) -> int:
    """Give the order, and say what came of it."""
    try:
        done = find_server(args).ask("POST", f"/internal/{verb}", OrderDone, body)
    except CommandFailed as failure:
        print(failure, file=sys.stderr)
        return EXIT_FAILED
    for title, lines in (
        ("done", done.applied),
        ("being replaced, one at a time", done.rolling),
        ("needs a restart of the server", done.needs_restart),
    ):
        for line in lines:
            print(f"{title}: {line}")
    if not (done.applied or done.rolling or done.needs_restart):
        print("nothing has changed")
    return 0


def _seconds(text: str) -> float:
    """A time such as 90, 90s, 10m, 2h or 1d, in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no time; write it as 90s, 10m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]
