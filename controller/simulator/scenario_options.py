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

from configs.load import ConfigError, load
from configs.scaling import POLICY_FIELDS, Scaling
from configs.settings import Settings
from configs.text import clip, escaped
from controller.simulator.hardware import Hardware, InvalidHardware, read_hardware
from controller.simulator.machines import SimMachine, SimSwitch
from controller.simulator.model_sim import WorkerProfile, batch_slowdowns
from controller.simulator.option_checks import InvalidScenario, check_options, hours_of
from controller.simulator.request_work import RequestCosts
from controller.simulator.scaling_fields import InvalidScaling, parse_fields, with_fields
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
from controller.simulator.traces import RecordedTrace, parse_start, read_numbers, read_recorded_trace

#: Number of workers for `max_workers: auto` without `--gpus` and without simulated GPUs.
_DEFAULT_GPUS = 8
#: Cold start time for `cold_start_s: auto`.
_DEFAULT_COLD_START_S = 40.0
#: Start time from standby for `standby_start_s: auto`.
_DEFAULT_STANDBY_START_S = WorkerProfile("").standby_start_s
#: Characters of a file that a message shows.
_MAX_SHOWN = 200


def scenario_from(args: argparse.Namespace) -> Scenario:
    """Return the scenario of the options. Raises `InvalidScenario`."""
    check_options(args)
    try:
        hardware = read_hardware(args.hardware) if args.hardware else Hardware()
        traces, span_s, start_unix_s = _traffic(args, hardware)
        scenario = _preset(args, merge_traffic(traces), span_s) if args.preset else _configured(args, traces, span_s)
        scenario = replace(scenario, sizes_known=args.sizes == "known", start_unix_s=start_unix_s)
        return _on_hardware(args, scenario, hardware)
    except (InvalidTrace, InvalidHardware, ConfigError, InvalidScaling) as error:
        raise InvalidScenario(str(error)) from None


def _on_hardware(args: argparse.Namespace, scenario: Scenario, hardware: Hardware) -> Scenario:
    """Return the scenario with the machines and the batches of the hardware."""
    if hardware.text is not None and args.curve is None and args.f0 is None:
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


def _traffic(args: argparse.Namespace, hardware: Hardware) -> tuple[dict[str, Traffic], float, float]:
    """Return the traffic by model, its duration, and the Unix time of its beginning."""
    traces, start_unix_s = _trace(args, hardware)
    if not any(traffic.times for traffic in traces.values()):
        raise InvalidScenario(f"{args.trace} has no requests")
    start_unix_s = parse_start(args.start) if args.start else start_unix_s or 0.0
    if args.hours:
        hours = hours_of(args.hours)
        start_unix_s += hours[0]
        traces = {name: part for name, trace in traces.items() if (part := slice_traffic(trace, *hours)).times}
        if not traces:
            raise InvalidScenario(f"the trace has no requests in --hours {args.hours}")
    last = max(traffic.times[-1] for traffic in traces.values() if traffic.times)
    return traces, -(-last // 60) * 60.0, start_unix_s


def _trace(args: argparse.Namespace, hardware: Hardware) -> RecordedTrace:
    if is_synthetic(args.trace):
        return RecordedTrace({"": synthetic_traffic(args.trace, args.seed)})
    return read_recorded_trace(
        Path(args.trace),
        _costs(args, hardware),
        stretch=args.stretch,
        bucket_s=args.bucket,
        seed=args.seed,
        max_bad_lines=args.bad_lines,
        warn=lambda message: print(message, file=sys.stderr),
    )


def _preset(args: argparse.Namespace, traffic: Traffic, span_s: float) -> Scenario:
    preset = PRESETS[args.preset]
    given: dict[str, Any] = {"scale_work": args.scale_work, "batch": args.batch, "fixed_share": args.f0}
    given |= {"max_workers": args.gpus, "variant": args.variant}
    preset = preset._replace(**{key: value for key, value in given.items() if value is not None})
    scenario = from_preset(preset, traffic, span_s, seed=args.seed)
    scalings = {name: with_fields(scaling, _fields(args)) for name, scaling in scenario.scalings.items()}
    slowdowns = _curve(args.curve) if args.curve is not None else batch_slowdowns(preset.batch, preset.fixed_share)
    profiles = {
        name: replace(
            profile,
            slowdowns=slowdowns,
            cold_starts_s=_cold_starts(args, scalings[name]),
            standby_start_s=_standby_start_s(args, scalings[name]),
            mean_lifetime_s=args.mean_life,
        )
        for name, profile in scenario.profiles.items()
    }
    return replace(scenario, profiles=profiles, scalings=scalings)


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `--set`. A single `--policy` is one of them, so that others may be its own."""
    fields = parse_fields(args.set)
    named = getattr(args, "policy", None) or []
    policies = [named] if isinstance(named, str) else named
    if len(policies) == 1 and (policies[0] in POLICY_FIELDS or ":" in policies[0]):
        fields.setdefault("policy", policies[0])
    return fields


def _configured(args: argparse.Namespace, traces: Mapping[str, Traffic], span_s: float) -> Scenario:
    settings = load(args.config)
    traces = _assigned(traces, settings)
    change, factor = VARIANTS[args.variant] if args.variant else (None, 1.0)
    traffic = {name: scale_work(one, args.scale_work or 1.0) for name, one in traces.items()}
    if change is not None:
        traffic = {name: change(one, span_s, args.seed) for name, one in traffic.items()}
    scalings = {name: with_fields(settings.scaling(name), _fields(args)) for name in traffic}
    max_workers = [scaling.max_workers for scaling in scalings.values()]
    devices = sum(one.count for one in settings.devices.simulated) or _DEFAULT_GPUS
    gpus = args.gpus or round(sum(devices if one == "auto" else one for one in max_workers) * factor)
    profiles = {name: _profile(args, name, settings, scalings[name]) for name in traffic}
    return Scenario(traffic, profiles, scalings, gpus, span_s, args.seed)


def _assigned(traces: Mapping[str, Traffic], settings: Settings) -> dict[str, Traffic]:
    """Assign the traces to the configured models by name; a single configured model gets all traffic."""
    if set(traces) <= set(settings.models):
        return {name: traces.get(name, Traffic([], [])) for name in settings.models}
    if len(settings.models) > 1:
        found = clip(escaped(", ".join(sorted(traces))), _MAX_SHOWN) if any(traces) else "no column `model`"
        raise InvalidScenario(
            f"the configuration has several models ({', '.join(settings.models)}), "
            f"so the trace must name one of them for each request; it has {found}"
        )
    return {next(iter(settings.models)): merge_traffic(traces)}


def _profile(args: argparse.Namespace, name: str, settings: Settings, scaling: Scaling) -> WorkerProfile:
    model = settings.models[name]
    batch = args.batch or (model.max_batch_size if model.max_batch_size != "auto" else 1)
    if args.curve is not None:
        slowdowns = _curve(args.curve)
    elif args.f0 is None and model.engine == "sim":
        step_s = model.sim.t0_s + model.sim.t1_s
        slowdowns = batch_slowdowns(batch, model.sim.t0_s / step_s if step_s else 1.0)
    else:
        slowdowns = batch_slowdowns(batch, 1.0 if args.f0 is None else args.f0)
    return WorkerProfile(
        name,
        slowdowns,
        _cold_starts(args, scaling),
        _standby_start_s(args, scaling),
        mean_lifetime_s=args.mean_life,
        priority_s=settings.queue.priority_s,
    )


def _standby_start_s(args: argparse.Namespace, scaling: Scaling) -> float:
    """Return the start time from standby: that of the option, of the configuration, or the usual one."""
    if args.standby_start is not None:
        return float(args.standby_start)
    return _DEFAULT_STANDBY_START_S if scaling.standby_start_s == "auto" else scaling.standby_start_s


def _cold_starts(args: argparse.Namespace, scaling: Scaling) -> tuple[float, ...]:
    """Return the times of cold starts: those of the option, of the configuration, or the usual one."""
    if args.cold_start is None:
        return (_DEFAULT_COLD_START_S if scaling.cold_start_s == "auto" else scaling.cold_start_s,)
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


def describe(scenario: Scenario) -> str:
    """Return a summary for a title."""
    parts = []
    for name, profile in scenario.profiles.items():
        traffic = scenario.traffic[name]
        mean = sum(traffic.work) / max(len(traffic.work), 1)
        start = profile.expected_start_s()
        requests = "1 request" if len(traffic.times) == 1 else f"{len(traffic.times)} requests"
        parts.append(f"{name}: {requests} of {mean:.3g} s, batch {profile.batch}, start {start:g} s")
    models = "; ".join(parts[:3]) + ("; ..." if len(parts) > 3 else "")
    return f"{scenario.span_s / 3600:.3g} h, at most {scenario.gpus} workers. {models}"


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file. Raises `InvalidScenario` if that fails."""
    try:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidScenario(f"{file} cannot be written: {error.strerror or error}") from None
