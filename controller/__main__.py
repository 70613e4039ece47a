"""`python -m controller`: runs the server, or the command that is named first."""

from __future__ import annotations

import pkgutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from configs.streams import discard_output

#: Commands with the functions that run them, which are imported when called. Without a command, the server runs.
COMMANDS = {
    "simulate": "controller.simulator.cli:main",
    "tune": "controller.simulator.tune:main",
    "replay": "controller.simulator.log_replay:main",
    "status": "controller.cli.status:main",
    "scale": "controller.cli.commands:scale",
    "pause": "controller.cli.commands:pause",
    "resume": "controller.cli.commands:resume",
    "reload": "controller.cli.commands:reload",
    "drain": "controller.cli.commands:drain",
    "restart": "controller.cli.commands:restart",
}
#: The same as of wrong options; importing its name would need the packages.
_EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit status."""
    try:
        # Before slow imports: as the first process of a container, one without a handler would ignore the signal.
        signal.signal(signal.SIGTERM, _exit_on_signal)
        words = list(sys.argv[1:] if argv is None else argv)
        if words and words[0] in COMMANDS:
            return _run(COMMANDS[words[0]], words[1:])
        from controller.serve import main as serve

        return serve(words, COMMANDS)
    except ModuleNotFoundError as error:
        print(_advice(error), file=sys.stderr)
        return _EXIT_USAGE
    except KeyboardInterrupt:  # Ctrl-C while modules are imported, or during a command
        return 128 + signal.SIGINT


def _advice(error: ModuleNotFoundError) -> str:
    """Return which interpreter has the missing package. Raises the error if the module is one of this program."""
    root = Path(__file__).resolve().parents[1]
    package = (error.name or "").partition(".")[0]
    if not package or (root / package).is_dir():
        raise error
    own = root / ".venv" / "bin" / "python"
    remedy = f"use {own}" if own.exists() else f"run {root / 'scripts' / 'serve'} once, which makes {own}"
    return f"{sys.executable} lacks the package {package}: {remedy}"


def _run(command: str, words: Sequence[str]) -> int:
    """Import and run a command. If its output cannot be written, say so, and return 1."""
    run: Callable[[Sequence[str]], int] = pkgutil.resolve_name(command)
    try:
        status = run(words)
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
