"""Muster beside MOSEC, LitServe, Ray Serve and BentoML: the same user model, the same loads, one at a time.

    python -m scripts.bench.serving.peers --rounds 3 --json results.json
    python -m scripts.bench.serving.peers --only muster,mosec --scenario noop,accelerator-1

Each server runs in an environment of its own, made from `scripts/bench/requirements/peers-*.txt` on first use. A server
that cannot be installed or started is skipped with its reason. A bare ASGI app on uvicorn runs in the same round: it is
the yardstick of the machine. Scenarios with thousands of requests per second are loaded by `wrk`, if it is installed,
and otherwise by a client in Python, which then limits the numbers. The simulated accelerator takes 0.05 + 0.005 * batch
seconds per step of at most 12.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from scripts.bench.serving.peers_lib import wrk
from scripts.bench.serving.peers_lib.deployment import Result
from scripts.bench.serving.peers_lib.plot import draw_figure
from scripts.bench.serving.peers_lib.report import number, plain, rows, table
from scripts.bench.serving.peers_lib.running import StartError
from scripts.bench.serving.peers_lib.scenarios import SCENARIOS, Scenario, takes_part
from scripts.bench.serving.peers_lib.servers import PEERS, Muster, Peer
from scripts.harness.environments import DEFAULT_FOLDER, REQUIREMENTS, InstallError
from scripts.harness.load import machine

_TABLE_WIDTH = 150


def prepare(names: Sequence[str], envs: Path, console: Console) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the programs' folder of each server, and the reason of each that cannot be installed."""
    programs, reasons = {}, {}
    for name in names:
        try:
            with console.status(f"{PEERS[name].name}: environment"):
                programs[name] = PEERS[name].prepare(envs)
        except InstallError as error:
            reasons[name] = f"not installed: {error}"
            console.print(reasons[name], style="yellow")
    return programs, reasons


def measure(peer: Peer | Muster, programs: Path, scenario: Scenario, seconds: float, number: int) -> Result:
    """Start the server, run the scenario once, and stop the server."""
    try:
        with peer.serve(programs, scenario.deployment) as server:
            return Result(scenario.name, peer.name, number, scenario.measure(server, seconds))
    except (StartError, AssertionError, RuntimeError, OSError) as error:
        return Result(scenario.name, peer.name, number, reason=f"{type(error).__name__}: {error}"[:300])


def run(args: argparse.Namespace, console: Console) -> Iterator[Result]:
    """Run every scenario on every server, `rounds` times; servers follow each other within a scenario."""
    programs, reasons = prepare(args.only, args.envs, console)
    places = [
        (number, SCENARIOS[scenario], name)
        for number in range(args.rounds)
        for scenario in args.scenario
        for name in args.only
        if takes_part(PEERS[name].name, SCENARIOS[scenario])
    ]
    with Progress(console=console) as progress:
        bar = progress.add_task("", total=len(places))
        for round_number, scenario, name in places:
            peer = PEERS[name]
            progress.update(bar, description=f"round {round_number + 1}: {scenario.question}: {peer.name}")
            if name in reasons:
                result = Result(scenario.name, peer.name, round_number, reason=reasons[name])
            else:
                result = measure(peer, programs[name], scenario, args.seconds, round_number)
            progress.console.print(_line(result), highlight=False)
            progress.advance(bar)
            yield result


def _line(result: Result) -> str:
    found = result.measurement
    text = f"{result.scenario:14} {result.server:10} "
    if found is None:
        return text + result.reason
    details = ", ".join(f"{name} {number(value)}" for name, value in found.details.items())
    return text + (
        f"{number(found.per_s):>8} req/s, p50 {number(found.p50_ms)} ms, p99 {number(found.p99_ms)} ms, "
        f"refused {found.refused}, errors {found.errors}; {details}"
    )


def versions() -> dict[str, str]:
    """Return the versions of the servers and of what the bare ASGI app runs on."""
    pinned = [file.read_text().strip().partition("==") for file in sorted(REQUIREMENTS.glob("peers-*.txt"))]
    own = {name: importlib.metadata.version(name) for name in ("uvicorn", "httptools", "uvloop")}
    return {name: version for name, _, version in pinned} | own


def names_of(known: Sequence[str], what: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {what} {', '.join(unknown)}; known: {', '.join(known)}")
        return [name for name in known if name in chosen]

    return parse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    servers, scenarios = list(PEERS), list(SCENARIOS)
    parser.add_argument("--only", type=names_of(servers, "server"), default=servers, help=f"of {','.join(servers)}")
    parser.add_argument(
        "--scenario", type=names_of(scenarios, "scenario"), default=scenarios, help=f"of {','.join(scenarios)}"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="measured seconds of each scenario")
    parser.add_argument("--rounds", type=int, default=1, help="repetitions of everything")
    parser.add_argument("--envs", type=Path, default=DEFAULT_FOLDER, help="folder of the servers' environments")
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--plot", type=Path, help="draw requests per second by server")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers are stopped on the way out
    console = Console()
    if not wrk.is_installed():
        console.print("wrk is not installed: a client in Python limits the highest numbers", style="yellow")
    results = list(run(args, console))
    found = rows(results)
    Console(width=max(console.width, _TABLE_WIDTH)).print(table(found))
    if args.json:
        command = " ".join(["python -m scripts.bench.serving.peers", *public(sys.argv[1:])])
        content = {"command": command, "machine": machine(), "versions": versions(), "rows": found, "rounds": results}
        args.json.write_text(json.dumps(plain(content), indent=1) + "\n")
    if args.plot:
        draw_figure(found, args.plot)
    return 0


def public(arguments: Sequence[str]) -> Iterator[str]:
    """Return the arguments without folders of this machine."""
    skipped = False
    for argument in arguments:
        if skipped or argument.startswith("--envs="):
            skipped = False
        elif argument == "--envs":
            skipped = True
        else:
            yield Path(argument).name if Path(argument).is_absolute() else argument


if __name__ == "__main__":
    sys.exit(main())
