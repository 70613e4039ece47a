"""`python -m controller status`: workers, devices, queues and the last decisions of a server that runs."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence

import msgspec
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from configs.cli import HelpFormatter
from controller.cli.client import CommandFailed, ServerClient, add_server_options, find_server
from controller.cli.commands import EXIT_FAILED
from controller.cli.tables import ServerStatus, notable_decisions, render
from wire.scaling import MAX_DECISIONS, ControllerReport, DecisionPage
from wire.snapshot import Snapshot

_DESCRIPTION = """\
Shows how a server that runs stands: models, workers, devices, and why there are as many workers as there are.

    python -m controller status
    python -m controller status --watch
    python -m controller status --json | jq '.controller.models'
"""
#: Where the output is no terminal: wide enough for the tables not to fold.
_FILE_WIDTH = 160


def main(argv: Sequence[str]) -> int:
    """Show it. Returns the exit status: 0 shown, 1 no server, 2 asked wrongly."""
    parser = argparse.ArgumentParser(
        prog="python -m controller status", description=_DESCRIPTION, formatter_class=HelpFormatter
    )
    add_server_options(parser)
    parser.add_argument(
        "--decisions", type=int, default=10, metavar="N", help="how many of the last that say something new"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="all of it as JSON")
    how.add_argument(
        "--watch", type=float, nargs="?", const=2.0, metavar="SECONDS", help="show it again and again, until Ctrl-C"
    )
    args = parser.parse_args(argv)
    if args.watch is not None and not 0 < args.watch <= 3600:
        parser.error(f"--watch {args.watch:g}: must be more than 0 and at most 3600 seconds")
    if not 1 <= args.decisions <= 1000:
        parser.error(f"--decisions {args.decisions}: must be between 1 and 1000")
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    try:
        server = find_server(args)
        if args.watch is not None:
            _watch(server, args.decisions, args.watch, console)
            return 0
        standing = fetch_status(server, args.decisions)
    except CommandFailed as failure:
        print(failure, file=sys.stderr)
        return EXIT_FAILED
    if args.json:
        print(as_json(standing))
    else:
        console.print(render(standing))
    return 0


def fetch_status(server: ServerClient, decisions: int) -> ServerStatus:
    """Ask for everything. Raises `CommandFailed` where there is no server; one without a controller has no report."""
    snapshot = server.ask("GET", "/internal/snapshot", Snapshot)
    try:
        report = server.ask("GET", "/internal/controller", ControllerReport)
    except CommandFailed:
        report = None
    page = server.ask("GET", "/internal/decisions", DecisionPage, query={"limit": str(MAX_DECISIONS)})
    return ServerStatus(server.url, snapshot, report, notable_decisions(page.decisions, decisions))


def as_json(standing: ServerStatus) -> str:
    """Everything, as it was answered."""
    content = {
        "url": standing.url,
        "snapshot": standing.snapshot,
        "controller": standing.report,
        "decisions": standing.decisions,
    }
    return msgspec.json.format(msgspec.json.encode(content)).decode()


def _watch(server: ServerClient, decisions: int, every_s: float, console: Console) -> None:
    """Until Ctrl-C. A server that is away is waited for."""
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            live.update(_page(server, decisions), refresh=True)
            time.sleep(every_s)


def _page(server: ServerClient, decisions: int) -> RenderableType:
    try:
        return render(fetch_status(server, decisions))
    except CommandFailed as failure:
        return Text(str(failure), style="bold red")
