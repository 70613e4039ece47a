"""`python -m controller`: runs the server, or the command that is named first."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from configs.streams import discard_output


def _serve(words: Sequence[str]) -> int:
    from controller.serve import main as serve

    return serve(words, COMMANDS)


def _simulate(words: Sequence[str]) -> int:
    from controller.simulator.cli import main as simulate

    return simulate(words)


def _tune(words: Sequence[str]) -> int:
    from controller.simulator.tune import main as tune

    return tune(words)


def _replay(words: Sequence[str]) -> int:
    from controller.simulator.log_replay import main as replay

    return replay(words)


def _status(words: Sequence[str]) -> int:
    from controller.cli.status import main as status

    return status(words)


def _scaling_command(verb: str, words: Sequence[str]) -> int:
    from controller.cli import commands

    run = {
        "scale": commands.scale,
        "pause": commands.pause,
        "resume": commands.resume,
        "reload": commands.reload,
        "drain": commands.drain,
        "restart": commands.restart,
    }
    return run[verb](words)


_SCALING_VERBS = ("scale", "pause", "resume", "reload", "drain", "restart")
#: Commands by name. Each imports its modules when called.
COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "simulate": _simulate,
    "tune": _tune,
    "replay": _replay,
    "status": _status,
    **{verb: functools.partial(_scaling_command, verb) for verb in _SCALING_VERBS},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit status."""
    # Before slow imports: as the first process of a container, one without a handler would ignore the signal.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    words = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(words[0]) if words else None
    try:
        return _serve(words) if command is None else _run(command, words[1:])
    except KeyboardInterrupt:  # Ctrl-C while modules are imported, or during a command
        return 128 + signal.SIGINT


def _run(command: Callable[[Sequence[str]], int], words: Sequence[str]) -> int:
    """Run a command. If its output cannot be written, say so, and return 1."""
    try:
        status = command(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        print(f"cannot go on: {error.strerror or error}", file=sys.stderr)
        discard_output()
        return 1
    return status


def _exit_on_signal(signum: int, frame: object) -> NoReturn:
    del frame
    sys.exit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
