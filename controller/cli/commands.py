"""`python -m controller scale | pause | resume | reload | drain | restart`: scaling commands for a running server."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from configs.cli import HelpFormatter
from configs.text import printable_lines
from controller.cli.client import CommandFailed, add_target_options, find_server
from wire.scaling import OrderDone

#: Exit status if the server rejected the command or cannot be reached.
EXIT_FAILED = 1
#: Longer lines of the server are cut.
_MAX_LINE_CHARS = 10_000

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_SCALE = """\
Overrides the number of a model's workers for some time:

    python -m controller scale digits 4 --hold 10m

The number must lie within the model's min_workers and max_workers. Change these in the configuration (`reload`).
"""
_PAUSE = "Pauses scaling: every model keeps its number of workers until `resume`. Workers that die are still replaced."
_RESUME = "Resumes scaling: ends the pause and all overrides, or only the override of one model."
_RELOAD = """\
Reads the configuration again. An invalid one changes nothing, and its mistakes are listed. Of a valid one, scaling
settings change at once. What workers load changes by a rolling update: one worker at a time, and the new one first.
All other changes are listed, and need a restart of the server. SIGHUP to the controller does the same.

    python -m controller reload            applies changes of the configuration
    python -m controller reload digits     also replaces the workers of digits, as for new weights under the same path
"""
_DRAIN = "Lets one worker finish its tasks and end. A policy that still needs it starts another one."
_RESTART = "Replaces one worker: where a device is free, the new one starts first."


def scale(argv: Sequence[str]) -> int:
    """Override the number of workers. Return the exit status: 0 done, 1 failed, 2 invalid arguments."""
    parser = _parser("scale", _SCALE)
    parser.add_argument("model")
    parser.add_argument("workers", type=int)
    parser.add_argument("--hold", type=_seconds, default="10m", metavar="TIME", help="such as 90s, 10m, 2h, 1d")
    args = parser.parse_args(argv)
    return _send(args, "scale", {"model": args.model, "workers": args.workers, "hold_s": args.hold})


def pause(argv: Sequence[str]) -> int:
    """Pause scaling. Return the exit status."""
    return _send(_parser("pause", _PAUSE).parse_args(argv), "pause", {})


def resume(argv: Sequence[str]) -> int:
    """Resume scaling. Return the exit status."""
    parser = _parser("resume", _RESUME)
    parser.add_argument("model", nargs="?", help="end only the override of this model")
    args = parser.parse_args(argv)
    return _send(args, "resume", {} if args.model is None else {"model": args.model})


def reload(argv: Sequence[str]) -> int:
    """Reload the configuration. Return the exit status."""
    parser = _parser("reload", _RELOAD)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="replace its workers even if no setting changed")
    args = parser.parse_args(argv)
    return _send(args, "reload", {"models": args.models})


def drain(argv: Sequence[str]) -> int:
    """Drain one worker. Return the exit status."""
    return _send_worker("drain", _DRAIN, argv)


def restart(argv: Sequence[str]) -> int:
    """Replace one worker. Return the exit status."""
    return _send_worker("restart", _RESTART, argv)


def _send_worker(verb: str, description: str, argv: Sequence[str]) -> int:
    parser = _parser(verb, description)
    parser.add_argument("worker", help="its name, as `status` shows it")
    args = parser.parse_args(argv)
    return _send(args, verb, {"worker": args.worker})


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m controller {verb}", description=description, formatter_class=HelpFormatter
    )
    add_target_options(parser)
    return parser


def _send(args: argparse.Namespace, verb: str, body: dict[str, Any]) -> int:
    """Send the command and print its outcome."""
    try:
        done = find_server(args).request("POST", f"/internal/{verb}", OrderDone, body)
    except CommandFailed as failure:
        print(failure, file=sys.stderr)
        return EXIT_FAILED
    for title, lines in (
        ("done", done.applied),
        ("being replaced, one at a time", done.rolling),
        ("needs a restart of the server", done.needs_restart),
    ):
        for line in lines:
            print(printable_lines(f"{title}: {line}", _MAX_LINE_CHARS))
    if not (done.applied or done.rolling or done.needs_restart):
        print("nothing has changed")
    return 0


def _seconds(text: str) -> float:
    """Parse a duration such as 90, 90s, 10m, 2h or 1d."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a duration; write it as 90s, 10m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]
