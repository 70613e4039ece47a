"""The command line of the load test."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.loadtest_lib.mix import USER_KINDS, models_for
from scripts.loadtest_lib.plan import LoadPlan, RecordedRequest, TargetModel
from scripts.loadtest_lib.recording import read_recording
from scripts.loadtest_lib.shapes import KINDS, LoadShape

_DEFAULT_MIX = "image=6,edit=1,job=1,chat=2"
_MAX_USERS = 100_000
#: After the last planned request of a recording.
_REPLAY_MARGIN_S = 1.0


def parse_options(argv: Sequence[str], description: str) -> argparse.Namespace:
    """Return the options. Exits with 2 and a reason if they are invalid."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = parser.add_argument_group("the server")
    target.add_argument("--url", help="a server that runs already; default: one is started")
    target.add_argument("--key-file", type=Path, help="API keys, one a line; users take turns")
    target.add_argument("--admin-key-file", type=Path, help="a key with the scope admin, for workers and queue")
    target.add_argument("--config", type=Path, help="configuration of the server that is started")
    target.add_argument("--workers", type=_count, default=8, help="at most, of the simulated server (default 8)")
    load = parser.add_argument_group("the load")
    load.add_argument("--shape", choices=KINDS, default="steady")
    load.add_argument("--users", type=_count, default=0, help="closed loop: users at most")
    load.add_argument("--pause", type=_seconds, default=5.0, help="closed loop: mean pause of a user (default 5 s)")
    load.add_argument("--rate", type=_seconds, default=0.0, help="open loop: requests per second at most")
    load.add_argument("--seconds", type=_seconds, default=60.0, help="of the whole test (default 60)")
    load.add_argument("--ramp", type=_seconds, default=0.0, help="seconds in which the load rises at the start")
    load.add_argument("--recording", type=Path, help="replay: a file of `server.record_arrivals`")
    load.add_argument("--compression", type=_seconds, default=1.0, help="replay: 24 plays a day in an hour")
    load.add_argument("--mix", type=parse_mix, default=parse_mix(_DEFAULT_MIX), help=f"default {_DEFAULT_MIX}")
    load.add_argument("--max-in-flight", type=_count, default=1000, help="open loop: requests that are open at once")
    load.add_argument("--timeout", type=_seconds, default=300.0, help="time limit of a request (default 300 s)")
    load.add_argument("--seed", type=int, default=1)
    load.add_argument("--processes", type=_count, default=1, help="processes of Locust (default 1)")
    load.add_argument("--web", action="store_true", help="open Locust's page; press Start there")
    load.add_argument("--web-port", type=_count, default=8089)
    load.add_argument("--html", type=Path, help="write the report here")
    load.add_argument("--json", type=Path, help="write every number here")
    options = parser.parse_args(argv)
    if problem := problem_of(options):
        parser.error(problem)
    return options


def problem_of(options: argparse.Namespace) -> str:
    """Return why the options contradict each other; empty if they do not."""
    if options.shape == "replay":
        if options.recording is None:
            return "--shape replay needs --recording FILE"
        return "--users and --rate do not go with --shape replay" if options.users or options.rate else ""
    if options.recording is not None:
        return "--recording needs --shape replay"
    if bool(options.users) == bool(options.rate):
        return "give either --users (a closed loop) or --rate (an open loop)"
    if options.url is not None and options.config is not None:
        return "--config is for a server that is started, and --url names one that runs"
    if options.ramp and options.shape == "ramp":
        return "--shape ramp rises over the whole test, without --ramp"
    return "--ramp must be shorter than --seconds" if options.ramp >= options.seconds else ""


def make_plan(options: argparse.Namespace, url: str, models: tuple[TargetModel, ...], folder: Path) -> LoadPlan:
    """Return the plan. Raises `InvalidTrace` for a recording, and `ValueError` if no kind of user has a model."""
    weights = {kind: weight for kind, weight in options.mix.items() if models_for(models, kind)}
    if not weights:
        raise ValueError(f"no model of the server fits {', '.join(options.mix)}")
    seconds: float = options.seconds
    recorded: tuple[RecordedRequest, ...] = ()
    if options.recording is not None:
        recorded = read_recording(options.recording, options.compression)
        seconds = recorded[-1].at_s + _REPLAY_MARGIN_S
    return LoadPlan(
        url=url,
        folder=folder,
        shape=LoadShape(options.shape, seconds, options.ramp),
        models=models,
        weights=weights,
        users=options.users,
        rate=options.rate,
        pause_s=options.pause,
        max_in_flight=options.max_in_flight,
        timeout_s=options.timeout,
        processes=options.processes,
        seed=options.seed,
        key_file=options.key_file.resolve() if options.key_file else None,
        recorded=recorded,
    )


def parse_mix(text: str) -> dict[str, float]:
    """Return the weights of `image=6,chat=1`. Raises `argparse.ArgumentTypeError`."""
    weights = {}
    for part in text.split(","):
        kind, _, value = part.partition("=")
        if kind not in USER_KINDS:
            raise argparse.ArgumentTypeError(f"unknown kind {kind!r}; known: {', '.join(USER_KINDS)}")
        try:
            weights[kind] = float(value or 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"the weight of {kind} is not a number: {value!r}") from None
        if not 0 <= weights[kind] < 1e6:
            raise argparse.ArgumentTypeError(f"the weight of {kind} must be between 0 and a million")
    if not any(weights.values()):
        raise argparse.ArgumentTypeError("one weight must be above 0")
    return {kind: weight for kind, weight in weights.items() if weight}


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= _MAX_USERS):
        raise argparse.ArgumentTypeError(f"must be a number between 1 and {_MAX_USERS}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text!r}") from None
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError("must be above 0 and at most a million")
    return value
