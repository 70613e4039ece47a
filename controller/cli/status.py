"""`python -m controller status`: workers, devices, queues and the last decisions of a running server."""

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
from controller.cli.client import CommandFailed, ServerClient, add_target_options, find_server
from controller.cli.commands import EXIT_FAILED
from controller.cli.tables import ServerStatus, notable_decisions, render
from wire.scaling import MAX_DECISIONS, ControllerReport, DecisionPage
from wire.snapshot import Snapshot

_DESCRIPTION = """\
Shows the state of a running server: models, workers, devices, and the reasons for the numbers of workers.

    python -m controller status
    python -m controller status --watch
    python -m controller status --json | jq '.controller.models'
"""
#: For output that is not a terminal: wide enough for the tables not to fold.
_FILE_WIDTH = 160


def main(argv: Sequence[str]) -> int:
    """Print the status. Return the exit status: 0 printed, 1 no server, 2 invalid arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m controller status", description=_DESCRIPTION, formatter_class=HelpFormatter
    )
    add_target_options(parser)
    parser.add_argument(
        "--decisions", type=int, default=10, metavar="N", help="maximum number of decisions that are shown"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print everything as JSON")
    how.add_argument(
        "--watch", type=float, nargs="?", const=2.0, metavar="SECONDS", help="refresh the status until Ctrl-C"
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
        status = fetch_status(server, args.decisions)
    except CommandFailed as failure:
        print(failure, file=sys.stderr)
        return EXIT_FAILED
    if args.json:
        print(as_json(status))
    else:
        console.print(render(status))
    return 0


def fetch_status(server: ServerClient, decisions: int) -> ServerStatus:
    """Fetch the status; without a controller it has no report. Raises `CommandFailed` if there is no server."""
    snapshot = server.request("GET", "/internal/snapshot", Snapshot)
    try:
        report = server.request("GET", "/internal/controller", ControllerReport)
    except CommandFailed:
        report = None
    page = server.request("GET", "/internal/decisions", DecisionPage, query={"limit": str(MAX_DECISIONS)})
    return ServerStatus(server.url, snapshot, report, notable_decisions(page.decisions, decisions))


def as_json(status: ServerStatus) -> str:
    content = {
        "url": status.url,
        "snapshot": status.snapshot,
        "controller": status.report,
        "decisions": status.decisions,
    }
    return msgspec.json.format(msgspec.json.encode(content)).decode()


def _watch(server: ServerClient, decisions: int, every_s: float, console: Console) -> None:
    """Refresh until Ctrl-C. A server that cannot be reached is tried again."""
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            live.update(_page(server, decisions), refresh=True)
            time.sleep(every_s)


def _page(server: ServerClient, decisions: int) -> RenderableType:
    try:
        return render(fetch_status(server, decisions))
    except CommandFailed as failure:
        return Text(str(failure), style="bold red")
