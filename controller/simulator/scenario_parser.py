"""The command line options that describe a scenario."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.cli import HelpFormatter
from controller.simulator.request_work import RequestCosts
from controller.simulator.scenarios import PRESETS, VARIANTS


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of a scenario."""
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=HelpFormatter)
    traffic = parser.add_argument_group("traffic")
    traffic.add_argument("--trace", required=True, metavar="FILE", help="a trace, or synthetic:PATTERN?rate=...")
    traffic.add_argument("--scale-work", type=float, default=None, metavar="X", help="multiply the work of requests")
    traffic.add_argument("--stretch", type=float, default=1.0, metavar="X", help="multiply all times of the trace")
    traffic.add_argument(
        "--bucket", type=float, default=0.0, metavar="S", help="spread times that are rounded to S seconds"
    )
    traffic.add_argument("--step-s", type=float, metavar="S", help="work of a step of an image in seconds")
    traffic.add_argument("--pixels", type=float, metavar="N", help="pixels of that image; other sizes in proportion")
    traffic.add_argument("--token-s", type=float, metavar="S", help="work of an output token in seconds")
    traffic.add_argument("--prompt-token-s", type=float, metavar="S", help="work of a token of a prompt in seconds")
    traffic.add_argument("--bad-lines", type=int, default=0, metavar="N", help="leave out up to N unreadable lines")
    traffic.add_argument(
        "--request-s",
        type=float,
        default=RequestCosts().request_s,
        metavar="S",
        help="work of a request without a size in the trace",
    )
    traffic.add_argument("--hours", metavar="A-B", help="use these hours, from the beginning of the trace")
    traffic.add_argument(
        "--start", metavar="TIME", help="date of the beginning, for schedules: 2026-11-30T00:00Z, or a Unix time"
    )
    traffic.add_argument("--variant", choices=sorted(VARIANTS), help="a variant of the traffic")
    workers = parser.add_argument_group("workers")
    workers.add_argument("--config", type=Path, metavar="FILE", help="YAML file with the models and their scaling")
    workers.add_argument("--preset", choices=sorted(PRESETS), help="a named scenario instead of a file")
    workers.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set a scaling field: slo.max_wait_s=5"
    )
    workers.add_argument(
        "--hardware", type=Path, metavar="FILE", help="YAML file with costs of steps and tokens, and machines"
    )
    workers.add_argument("--gpus", type=int, metavar="N", help="maximum number of workers")
    workers.add_argument("--batch", type=int, metavar="B", help="tasks in a full batch")
    workers.add_argument("--f0", type=float, metavar="X", help="share of a step that does not grow with the batch")
    workers.add_argument("--curve", metavar="S1,S2,...", help="measured slowdowns of 1, 2, ... tasks")
    workers.add_argument("--cold-start", metavar="S|FILE", help="cold start time, or a file with measured times")
    workers.add_argument(
        "--standby-start", type=float, metavar="S", help="start time from standby, instead of standby_start_s (auto: 5)"
    )
    workers.add_argument("--mean-life", type=float, metavar="S", help="mean time between failures of a worker")
    workers.add_argument(
        "--sizes", choices=("known", "unknown"), default="known", help="whether the server knows the work"
    )
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal results")
    return parser
