"""Command line options of a scenario: traffic, workers and limits."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from configs.load import ConfigError, load, plain_message, unknown_key
from configs.scaling import POLICY_FIELDS, Scaling
from configs.settings import Settings
from configs.yaml_file import InvalidYaml, parse_yaml
from controller.simulator.hardware import Hardware, InvalidHardware, read_hardware
from controller.simulator.machines import SimMachine, SimSwitch
from controller.simulator.model_sim import WorkerProfile, batch_slowdowns
from controller.simulator.request_work import RequestCosts
from controller.simulator.scenarios import (
    PRESETS,
    VARIANTS,
    Scenario,
    Traffic,
    from_preset,
    merge_traffic,
    scale_work,
    slice_traffic,
)
from controller.simulator.synthetic import is_synthetic, synthetic_traffic
from controller.simulator.trace_rows import InvalidTrace
from controller.simulator.traces import read_numbers, read_trace

#: Number of workers for `max_workers: auto` without `--gpus`.
_DEFAULT_GPUS = 8
#: Cold start time for `cold_start_s: auto`.
_DEFAULT_COLD_START_S = 40.0
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


class InvalidScenario(Exception):
    """The scenario cannot be simulated; the text says what to change."""


def scenario_from(args: argparse.Namespace) -> Scenario:
    """Return the scenario of the options. Raises `InvalidScenario`."""
    _check(args)
    try:
        hardware = read_hardware(args.hardware) if args.hardware else Hardware()
        traces, span_s = _traffic(args, hardware)
        scenario = _preset(args, merge_traffic(traces), span_s) if args.preset else _configured(args, traces, span_s)
        return _on_hardware(args, replace(scenario, sizes_known=args.sizes == "known"), hardware)
    except (InvalidTrace, InvalidHardware, ConfigError) as error:
        raise InvalidScenario(str(error)) from None
    except ValidationError as error:
        raise InvalidScenario(wrong_settings(error)) from None


def wrong_settings(error: ValidationError) -> str:
    """Return the wrong settings of a section `scaling` and what is allowed, as texts for people."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'scaling'}: {_wrong_setting(one)}" for one in error.errors())


def _wrong_setting(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return unknown_key(str(problem["loc"][0]), list(Scaling.model_fields))
    return plain_message(problem)


def _check(args: argparse.Namespace) -> None:
    for name in _POSITIVE_OPTIONS:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InvalidScenario(f"--{name.replace('_', '-')} ({value:g}) must be above 0")
    if args.f0 is not None and not 0 <= args.f0 <= 1:
        raise InvalidScenario(f"--f0 ({args.f0:g}) must be between 0 and 1")
    if args.bad_lines < 0:
        raise InvalidScenario(f"--bad-lines ({args.bad_lines}) must not be negative")
    if args.bucket < 0:
        raise InvalidScenario(f"--bucket ({args.bucket:g}) must not be negative")


def _on_hardware(args: argparse.Namespace, scenario: Scenario, hardware: Hardware) -> Scenario:
    """Return the scenario with the machines and the batches of the hardware."""
    if hardware.text is not None and not (args.curve or args.f0 is not None):
        slowdowns = hardware.text.slowdowns()[: args.batch]
        profiles = {name: replace(profile, slowdowns=slowdowns) for name, profile in scenario.profiles.items()}
        scenario = replace(scenario, profiles=profiles)
    if not hardware.machines:
        return scenario
    if args.gpus is not None:
        raise InvalidScenario(f"--gpus and machines of {args.hardware} exclude each other")
    machines = [SimMachine(name, one.gpus, one.mean_life_s, one.repair_s) for name, one in hardware.machines.items()]
    switches = [SimSwitch(name, one.machines, one.mean_life_s, one.repair_s) for name, one in hardware.switches.items()]
    return replace(scenario, machines=machines, switches=switches, gpus=sum(machine.gpus for machine in machines))


def _costs(args: argparse.Namespace, hardware: Hardware) -> RequestCosts:
    given = {name: getattr(args, name) for name in ("step_s", "pixels", "token_s", "prompt_token_s")}
    return hardware.costs(args.request_s)._replace(**{name: one for name, one in given.items() if one is not None})


def _traffic(args: argparse.Namespace, hardware: Hardware) -> tuple[dict[str, Traffic], float]:
    if is_synthetic(args.trace):
        traces = {"": synthetic_traffic(args.trace, args.seed)}
    else:
        traces = read_trace(
            Path(args.trace),
            _costs(args, hardware),
            stretch=args.stretch,
            bucket_s=args.bucket,
            seed=args.seed,
            max_bad_lines=args.bad_lines,
            warn=lambda message: print(message, file=sys.stderr),
        )
    if args.hours:
        hours = _hours(args.hours)
        traces = {name: part for name, trace in traces.items() if (part := slice_traffic(trace, *hours)).times}
    if not any(traffic.times for traffic in traces.values()):
        raise InvalidScenario("the trace has no requests in this part; change --hours")
    last = max(traffic.times[-1] for traffic in traces.values() if traffic.times)
    return traces, -(-last // 60) * 60.0


def _hours(text: str) -> tuple[float, float]:
    start, dash, end = text.partition("-")
    try:
        hours = float(start or 0), float(end) if dash and end else float("inf")
    except ValueError:
        raise InvalidScenario(f"--hours {text} must be two numbers such as 0-12") from None
    return 3600 * hours[0], 3600 * hours[1]


def _preset(args: argparse.Namespace, traffic: Traffic, span_s: float) -> Scenario:
    preset = PRESETS[args.preset]
    given: dict[str, Any] = {"scale_work": args.scale_work, "batch": args.batch, "fixed_share": args.f0}
    given |= {"max_workers": args.gpus, "variant": args.variant}
    preset = preset._replace(**{key: value for key, value in given.items() if value is not None})
    scenario = from_preset(
        preset, traffic, span_s, cold_starts_s=_cold_starts(args, _DEFAULT_COLD_START_S), seed=args.seed
    )
    slowdowns = _curve(args.curve) if args.curve else batch_slowdowns(preset.batch, preset.fixed_share)
    profiles = {
        name: replace(profile, slowdowns=slowdowns, mean_lifetime_s=args.mean_life, standby_start_s=args.standby_start)
        for name, profile in scenario.profiles.items()
    }
    scalings = {name: with_fields(scaling, parse_fields(args.set)) for name, scaling in scenario.scalings.items()}
    return replace(scenario, profiles=profiles, scalings=scalings)


def _configured(args: argparse.Namespace, traces: Mapping[str, Traffic], span_s: float) -> Scenario:
    settings = load(args.config)
    traces = _assigned(traces, settings)
    change, factor = VARIANTS[args.variant] if args.variant else (None, 1.0)
    traffic = {name: scale_work(one, args.scale_work or 1.0) for name, one in traces.items()}
    if change is not None:
        traffic = {name: change(one, span_s, args.seed) for name, one in traffic.items()}
    scalings = {name: with_fields(settings.scaling(name), parse_fields(args.set)) for name in traffic}
    max_workers = [scaling.max_workers for scaling in scalings.values()]
    gpus = args.gpus or round(sum(_DEFAULT_GPUS if one == "auto" else one for one in max_workers) * factor)
    profiles = {name: _profile(args, name, settings, scalings[name]) for name in traffic}
    return Scenario(traffic, profiles, scalings, gpus, span_s, args.seed)


def _assigned(traces: Mapping[str, Traffic], settings: Settings) -> dict[str, Traffic]:
    """Assign the traces to the configured models by name; a single configured model gets all traffic."""
    if set(traces) <= set(settings.models):
        return {name: traces.get(name, Traffic([], [])) for name in settings.models}
    if len(settings.models) > 1:
        raise InvalidScenario(
            f"the trace has the models {', '.join(sorted(traces))}, "
            f"but the configuration has {', '.join(settings.models)}"
        )
    return {next(iter(settings.models)): merge_traffic(traces)}


def _profile(args: argparse.Namespace, name: str, settings: Settings, scaling: Scaling) -> WorkerProfile:
    model = settings.models[name]
    batch = args.batch or (model.max_batch_size if model.max_batch_size != "auto" else 1)
    if args.curve:
        slowdowns = _curve(args.curve)
    elif args.f0 is None and model.engine == "sim":
        step_s = model.sim.t0_s + model.sim.t1_s
        slowdowns = batch_slowdowns(batch, model.sim.t0_s / step_s if step_s else 1.0)
    else:
        slowdowns = batch_slowdowns(batch, 1.0 if args.f0 is None else args.f0)
    cold_start_s = _DEFAULT_COLD_START_S if scaling.cold_start_s == "auto" else scaling.cold_start_s
    return WorkerProfile(
        name,
        slowdowns,
        _cold_starts(args, cold_start_s),
        args.standby_start,
        mean_lifetime_s=args.mean_life,
        priority_s=settings.queue.priority_s,
    )


def _cold_starts(args: argparse.Namespace, default_s: float) -> tuple[float, ...]:
    if args.cold_start is None:
        return (default_s,)
    try:
        seconds: tuple[float, ...] = (float(args.cold_start),)
    except ValueError:
        seconds = read_numbers(Path(args.cold_start))
    if not seconds or not all(0 < one < math.inf for one in seconds):
        raise InvalidScenario(f"--cold-start ({args.cold_start}): every start must take more than 0 s")
    return seconds


def _curve(text: str) -> tuple[float, ...]:
    try:
        slowdowns = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidScenario(f"--curve {text} must be numbers separated by commas, such as 1,1.4,1.9") from None
    if slowdowns[0] != 1 or not all(1 <= one < math.inf for one in slowdowns):
        raise InvalidScenario(f"--curve {text}: the first number must be 1, and none may be below 1")
    return slowdowns


def parse_fields(pairs: list[str]) -> dict[str, Any]:
    """Return `a.b=1` options as nested fields. Raises `InvalidScenario`."""
    values = {}
    for pair in pairs:
        path, equals, value = pair.partition("=")
        if not equals:
            raise InvalidScenario(f"--set {pair} must be KEY=VALUE")
        try:
            values[path] = parse_yaml(value).value
        except InvalidYaml as error:
            raise InvalidScenario(f"--set {pair}: {error}") from None
    return nested_fields(values)


def nested_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted path as nested fields."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def with_fields(scaling: Scaling, tree: Mapping[str, Any]) -> Scaling:
    """Return the scaling with these fields set, without fields that its policy does not read."""
    merged = merge_fields(scaling.model_dump(exclude_unset=True), tree)
    policy = merged.get("policy", Scaling.model_fields["policy"].default)
    if policy in POLICY_FIELDS:
        unused = frozenset().union(*POLICY_FIELDS.values()) - POLICY_FIELDS[policy] - set(tree)
        merged = {key: value for key, value in merged.items() if key not in unused}
    return Scaling.model_validate(merged)


def merge_fields(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        inner = merged.get(key)
        merged[key] = merge_fields(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return merged


def describe(scenario: Scenario) -> str:
    """Return a summary for a title."""
    parts = []
    for name, profile in scenario.profiles.items():
        traffic = scenario.traffic[name]
        mean = sum(traffic.work) / max(len(traffic.work), 1)
        start = profile.expected_start_s()
        parts.append(f"{name}: {len(traffic.times)} requests of {mean:.3g} s, batch {profile.batch}, start {start:g} s")
    models = "; ".join(parts[:3]) + ("; ..." if len(parts) > 3 else "")
    return f"{scenario.span_s / 3600:.3g} h, at most {scenario.gpus} workers. {models}"


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file. Raises `InvalidScenario` if that fails."""
    try:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidScenario(f"{file} cannot be written: {error}") from None
