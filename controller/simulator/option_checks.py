"""Checks of the command line options of a scenario, before a trace is read."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from configs.links import is_link_loop
from controller.simulator.request_work import RequestCosts
from controller.simulator.synthetic import is_synthetic
from controller.simulator.traces import parse_start

_POSITIVE_OPTIONS = (
    "scale_work",
    "stretch",
    "step_s",
    "pixels",
    "token_s",
    "prompt_token_s",
    "request_s",
    "gpus",
    "batch",
    "standby_start",
    "mean_life",
)
#: Options of recorded traces, with their defaults. They say nothing of synthetic requests.
_RECORDED_ONLY = {
    "stretch": 1.0,
    "bucket": 0.0,
    "step_s": None,
    "pixels": None,
    "token_s": None,
    "prompt_token_s": None,
    "request_s": RequestCosts().request_s,
    "bad_lines": 0,
}
#: As in a configuration.
_MAX_WORKERS = _MAX_BATCH = 4096
_MAX_VALUE = 1e9
#: Workers that fail more often than this never serve, and their failures would fill the memory.
_MIN_LIFE_S = 1.0
#: About a trace that does not fit into the memory.
TOO_LARGE = "needs more memory than there is; use a shorter trace"


class InvalidScenario(Exception):
    """The scenario cannot be simulated; the text says what to change."""


def check_options(args: argparse.Namespace) -> None:
    """Raise `InvalidScenario` for options out of their range, and for those that contradict each other."""
    _check_ranges(args)
    if args.preset and args.config:
        raise InvalidScenario("--preset and --config exclude each other: a preset has its own model and settings")
    if is_synthetic(args.trace):
        for name, default in _RECORDED_ONLY.items():
            if getattr(args, name) != default:
                raise InvalidScenario(f"{_option(name)} is for recorded traces, and {args.trace} is a synthetic one")
    if args.curve is not None and (args.batch is not None or args.f0 is not None):
        raise InvalidScenario("--curve excludes --batch and --f0: its numbers tell both")
    if args.start:
        try:
            parse_start(args.start)
        except ValueError as error:
            raise InvalidScenario(str(error)) from None
    if args.hours:
        hours_of(args.hours)


def _check_ranges(args: argparse.Namespace) -> None:
    for name in _POSITIVE_OPTIONS:
        value = getattr(args, name)
        if value is not None and not 0 < value <= _MAX_VALUE:
            allowed = "above 0" if not value > 0 else f"at most {_MAX_VALUE:g}"
            raise InvalidScenario(f"{_option(name)} ({value:g}) must be {allowed}")
    for name, most in (("gpus", _MAX_WORKERS), ("batch", _MAX_BATCH)):
        value = getattr(args, name)
        if value is not None and value > most:
            raise InvalidScenario(f"{_option(name)} ({value}) must be at most {most}")
    if args.mean_life is not None and args.mean_life < _MIN_LIFE_S:
        raise InvalidScenario(f"--mean-life ({args.mean_life:g}) must be at least {_MIN_LIFE_S:g} s")
    if args.f0 is not None and not 0 <= args.f0 <= 1:
        raise InvalidScenario(f"--f0 ({args.f0:g}) must be between 0 and 1")
    if args.bad_lines < 0:
        raise InvalidScenario(f"--bad-lines ({args.bad_lines}) must not be negative")
    if not 0 <= args.bucket < math.inf:
        raise InvalidScenario(f"--bucket ({args.bucket:g}) must be a number of seconds, and not negative")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def hours_of(text: str) -> tuple[float, float]:
    """Return the part of a trace `A-B` in seconds. Raises `InvalidScenario`."""
    start, dash, end = text.partition("-")
    try:
        hours = float(start or 0), float(end) if dash and end else math.inf
    except ValueError:
        hours = math.nan, math.nan
    if not 0 <= hours[0] < hours[1]:
        raise InvalidScenario(f"--hours {text} must be two numbers such as 0-12, the smaller one first")
    return 3600 * hours[0], 3600 * hours[1]


def check_output(option: str, file: Path | None, trace: str) -> None:
    """Raise `InvalidScenario` if the file cannot be written, before anything is simulated for it."""
    if file is None:
        return
    for each in (file, Path(trace)):
        if is_link_loop(each):
            raise InvalidScenario(f"{each} is a link that leads back to itself")
    if file.resolve() == Path(trace).resolve():
        raise InvalidScenario(f"{option} {file} is the trace, which it would replace")
    folder = file.parent
    if file.is_dir():
        raise InvalidScenario(f"{option} {file} is a folder, and must be a file")
    if not folder.is_dir():
        raise InvalidScenario(f"{option} {file}: there is no folder {folder}")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise InvalidScenario(f"{option} {file} cannot be written: Permission denied")
