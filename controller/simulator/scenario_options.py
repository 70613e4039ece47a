"""From a command line to a scenario: which traffic, which workers, which bounds."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.cli import HelpFormatter
from configs.load import ConfigError, load
from configs.scaling import POLICY_FIELDS, Scaling
from configs.settings import Settings
from controller.simulator.model_sim import Service, slow_downs
from controller.simulator.scenarios import PRESETS, VARIANTS, Preset, Scenario, Traffic, from_preset, scaled
from controller.simulator.synthetic import is_synthetic, make
from controller.simulator.traces import Costs, TraceRefused, read_numbers, read_trace

#: What `max_workers: auto` means where nobody says how many devices there are.
_GPUS = 8
#: What `cold_start_s: auto` means before anything was measured.
_COLD_START_S = 40.0
_ABOVE_ZERO = (
    "scale_work",
    "stretch",
    "step_s",
    "token_s",
    "request_s",
    "gpus",
    "batch",
    "standby_start",
    "mean_life",
)


class Refused(Exception):
    """Cannot be simulated as asked; the text says what to change."""


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with everything that describes a scenario."""
    parser = argparse.ArgumentParser(prog=prog, description=description, formatter_class=HelpFormatter)
    traffic = parser.add_argument_group("traffic")
    traffic.add_argument("--trace", required=True, metavar="FILE", help="a trace, or synthetic:PATTERN?rate=...")
    traffic.add_argument("--scale-work", type=float, default=None, metavar="X", help="multiply what requests need")
    traffic.add_argument("--stretch", type=float, default=1.0, metavar="X", help="multiply all times of the trace")
    traffic.add_argument("--bucket", type=float, default=0.0, metavar="S", help="spread times that are full S seconds")
    traffic.add_argument("--step-s", type=float, default=Costs().step_s, help="seconds of a step, for traces of steps")
    traffic.add_argument("--token-s", type=float, default=Costs().token_s, help="seconds of a token")
    traffic.add_argument("--request-s", type=float, default=Costs().request_s, help="seconds, where nothing is told")
    traffic.add_argument("--hours", metavar="A-B", help="only this part of the trace")
    traffic.add_argument("--variant", choices=sorted(VARIANTS), help="change the traffic")
    workers = parser.add_argument_group("workers")
    workers.add_argument("--config", type=Path, metavar="FILE", help="YAML file with the models and their scaling")
    workers.add_argument("--preset", choices=sorted(PRESETS), help="a scenario by name, instead of a file")
    workers.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a field of every scaling")
    workers.add_argument("--gpus", type=int, metavar="N", help="workers that the pool has room for")
    workers.add_argument("--batch", type=int, metavar="B", help="tasks of a full batch")
    workers.add_argument("--f0", type=float, metavar="X", help="part of a step that does not grow with the batch")
    workers.add_argument("--curve", metavar="S1,S2,...", help="measured slow-downs of 1, 2, ... tasks instead")
    workers.add_argument("--cold-start", metavar="S|FILE", help="seconds of a start, or a file of such")
    workers.add_argument("--standby-start", type=float, default=5.0, metavar="S", help="seconds of a spare's start")
    workers.add_argument("--mean-life", type=float, metavar="S", help="workers die, this often on average")
    workers.add_argument("--sizes", choices=("known", "unknown"), default="known", help="whether work is known")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal results")
    return parser


def scenario_from(args: argparse.Namespace) -> Scenario:
    """What the command line describes. Raises `Refused`."""
    _check(args)
    try:
        traces, span_s = _traffic(args)
        scenario = _preset(args, _merged(traces), span_s) if args.preset else _configured(args, traces, span_s)
        return replace(scenario, sizes_known=args.sizes == "known")
    except (TraceRefused, ConfigError) as error:
        raise Refused(str(error)) from None
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, one['loc'])) or 'scaling'}: {one['msg']}" for one in error.errors())
        raise Refused("; ".join(problems)) from None


def _check(args: argparse.Namespace) -> None:
    for name in _ABOVE_ZERO:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise Refused(f"--{name.replace('_', '-')} ({value:g}) must be above 0")
    if args.f0 is not None and not 0 <= args.f0 <= 1:
        raise Refused(f"--f0 ({args.f0:g}) must lie between 0 and 1")
    if args.bucket < 0:
        raise Refused(f"--bucket ({args.bucket:g}) must not be negative")


def _traffic(args: argparse.Namespace) -> tuple[dict[str, Traffic], float]:
    if is_synthetic(args.trace):
        traces = {"": make(args.trace, args.seed)}
    else:
        costs = Costs(args.step_s, args.token_s, args.request_s)
        traces = read_trace(Path(args.trace), costs, stretch=args.stretch, bucket_s=args.bucket, seed=args.seed)
    if args.hours:
        traces = {name: part for name, all_of in traces.items() if (part := cut(all_of, *_hours(args.hours))).times}
    if not any(traffic.times for traffic in traces.values()):
        raise Refused("the trace has no requests in that part")
    last = max(traffic.times[-1] for traffic in traces.values() if traffic.times)
    return traces, -(-last // 60) * 60.0


def _hours(text: str) -> tuple[float, float]:
    begin, dash, end = text.partition("-")
    try:
        hours = float(begin or 0), float(end) if dash and end else float("inf")
    except ValueError:
        raise Refused(f"--hours {text} must be two numbers, as in 0-12") from None
    return 3600 * hours[0], 3600 * hours[1]


def cut(traffic: Traffic, since_s: float, until_s: float) -> Traffic:
    """What comes in this time, from 0 on."""
    pairs = [(at - since_s, work) for at, work in zip(*traffic, strict=True) if since_s <= at < until_s]
    return Traffic([at for at, _ in pairs], [work for _, work in pairs])


def _merged(traces: Mapping[str, Traffic]) -> Traffic:
    """All of it as one model's."""
    if len(traces) == 1:
        return next(iter(traces.values()))
    pairs = sorted(pair for traffic in traces.values() for pair in zip(*traffic, strict=True))
    return Traffic([at for at, _ in pairs], [work for _, work in pairs])


def _preset(args: argparse.Namespace, traffic: Traffic, span_s: float) -> Scenario:
    preset = PRESETS[args.preset]
    given: dict[str, Any] = {"scale_work": args.scale_work, "batch": args.batch, "alone": args.f0}
    given |= {"max_workers": args.gpus, "variant": args.variant}
    preset = preset._replace(**{key: value for key, value in given.items() if value is not None})
    scenario = from_preset(preset, traffic, span_s, cold_starts_s=_cold_starts(args, None), seed=args.seed)
    slow = _curve(args.curve) if args.curve else slow_downs(preset.batch, preset.alone)
    services = {
        name: replace(one, slow=slow, mean_life_s=args.mean_life, standby_s=args.standby_start)
        for name, one in scenario.services.items()
    }
    scalings = {name: changed(one, fields(args.set)) for name, one in scenario.scalings.items()}
    return replace(scenario, services=services, scalings=scalings)


def _configured(args: argparse.Namespace, traces: Mapping[str, Traffic], span_s: float) -> Scenario:
    settings = load(args.config)
    traces = _assigned(traces, settings)
    change, room = VARIANTS[args.variant] if args.variant else (None, 1.0)
    traffic = {name: scaled(one, args.scale_work or 1.0) for name, one in traces.items()}
    if change is not None:
        traffic = {name: change(one, span_s, args.seed) for name, one in traffic.items()}
    scalings = {name: changed(settings.scaling(name), fields(args.set)) for name in traffic}
    most = [scaling.max_workers for scaling in scalings.values()]
    gpus = args.gpus or round(sum(_GPUS if one == "auto" else one for one in most) * room)
    services = {name: _service(args, name, settings, scalings[name]) for name in traffic}
    return Scenario(traffic, services, scalings, gpus, span_s, args.seed)


def _assigned(traces: Mapping[str, Traffic], settings: Settings) -> dict[str, Traffic]:
    """Each model's own where the trace names the models that are configured; else all of it is the only model's."""
    if set(traces) <= set(settings.models):
        return {name: traces.get(name, Traffic([], [])) for name in settings.models}
    if len(settings.models) > 1:
        raise Refused(
            f"the trace's models are {', '.join(sorted(traces))}, "
            f"those of the configuration {', '.join(settings.models)}"
        )
    return {next(iter(settings.models)): _merged(traces)}


def _service(args: argparse.Namespace, name: str, settings: Settings, scaling: Scaling) -> Service:
    model = settings.models[name]
    batch = args.batch or (model.max_batch_size if model.max_batch_size != "auto" else 1)
    if args.curve:
        slow = _curve(args.curve)
    elif args.f0 is None and model.engine == "sim":
        alone = model.sim.t0_s + model.sim.t1_s
        slow = slow_downs(batch, model.sim.t0_s / alone if alone else 1.0)
    else:
        slow = slow_downs(batch, 1.0 if args.f0 is None else args.f0)
    cold = _COLD_START_S if scaling.cold_start_s == "auto" else scaling.cold_start_s
    return Service(name, slow, _cold_starts(args, cold), args.standby_start, mean_life_s=args.mean_life)


def _cold_starts(args: argparse.Namespace, usual_s: float | None) -> tuple[float, ...]:
    if args.cold_start is None:
        return (_COLD_START_S if usual_s is None else usual_s,)
    try:
        seconds: tuple[float, ...] = (float(args.cold_start),)
    except ValueError:
        seconds = read_numbers(Path(args.cold_start))
    if not seconds or not all(0 < one < math.inf for one in seconds):
        raise Refused(f"--cold-start ({args.cold_start}): every start must take more than 0 seconds")
    return seconds


def _curve(text: str) -> tuple[float, ...]:
    try:
        slow = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise Refused(f"--curve {text} must be numbers with commas between, such as 1,1.4,1.9") from None
    if slow[0] != 1 or not all(1 <= one < math.inf for one in slow):
        raise Refused(f"--curve {text}: one task alone is slowed down 1 time, more tasks never less than that")
    return slow


def fields(pairs: list[str]) -> dict[str, Any]:
    """`a.b=1` and the like as a tree. Raises `Refused`."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals:
            raise Refused(f"--set {pair} must be KEY=VALUE")
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = yaml.safe_load(value)
    return tree


def changed(scaling: Scaling, tree: Mapping[str, Any]) -> Scaling:
    """The scaling with these fields over it; those that its policy then does not read are dropped."""
    merged = _over(scaling.model_dump(exclude_unset=True), tree)
    policy = merged.get("policy", Scaling.model_fields["policy"].default)
    if policy in POLICY_FIELDS:
        strange = frozenset().union(*POLICY_FIELDS.values()) - POLICY_FIELDS[policy] - set(tree)
        merged = {key: value for key, value in merged.items() if key not in strange}
    return Scaling.model_validate(merged)


def _over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _over(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def described(scenario: Scenario) -> str:
    """In a few words, for a title."""
    parts = []
    for name, service in scenario.services.items():
        traffic = scenario.traffic[name]
        mean = sum(traffic.work) / max(len(traffic.work), 1)
        start = service.expected_start_s()
        parts.append(f"{name}: {len(traffic.times)} requests of {mean:.3g} s, batch {service.batch}, start {start:g} s")
    shown = "; ".join(parts[:3]) + ("; ..." if len(parts) > 3 else "")
    return f"{scenario.span_s / 3600:.3g} h, room for {scenario.gpus} workers. {shown}"


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Raises `Refused` where the file cannot be written."""
    try:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error}") from None


__all__ = ["Preset", "Refused", "changed", "cut", "described", "fields", "make_parser", "scenario_from", "write_json"]
