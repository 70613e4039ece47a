"""Scenarios to simulate: traffic, worker profiles and limits; traffic variants; named presets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from configs.scaling import Scaling
from controller.simulator.agents import ScalingAgent, ScalingTarget
from controller.simulator.cluster import SimCluster
from controller.simulator.machines import MachineFailure, SimMachine, SimSwitch, failures_of
from controller.simulator.model_sim import ModelSim, WorkerProfile, batch_slowdowns
from controller.simulator.simulator import Simulation, SimulationResult, ignore_progress
from controller.simulator.urgency import Urgency


class Traffic(NamedTuple):
    """One model's requests: arrival times in ascending order, and work in seconds on an otherwise idle worker."""

    times: Sequence[float]
    work: Sequence[float]
    #: Priority and deadline of each request; empty: all have the same priority, and none has a deadline.
    urgencies: Sequence[Urgency] = ()

    @property
    def requests(self) -> list[TimedRequest]:
        """The requests in order of time."""
        urgencies = self.urgencies or [Urgency()] * len(self.times)
        return [TimedRequest(*one) for one in zip(self.times, self.work, urgencies, strict=True)]


class TimedRequest(NamedTuple):
    """A request of a model: its arrival time and its work in seconds."""

    at: float
    work_s: float
    urgency: Urgency = Urgency()


def traffic_of(requests: Iterable[TimedRequest]) -> Traffic:
    """Return requests in order of time as traffic."""
    ordered = sorted(requests)
    urgencies = [request.urgency for request in ordered]
    return Traffic(
        [request.at for request in ordered],
        [request.work_s for request in ordered],
        urgencies if any(urgency != Urgency() for urgency in urgencies) else (),
    )


@dataclass(frozen=True, slots=True)
class Scenario:
    """The models of a cluster with their traffic, worker profiles and scaling settings."""

    traffic: Mapping[str, Traffic]
    profiles: Mapping[str, WorkerProfile]
    scalings: Mapping[str, Scaling]
    #: Maximum number of workers in the cluster.
    gpus: int
    #: Minimum duration in seconds for which workers are charged.
    span_s: float
    seed: int = 0
    #: Whether the server knows the work of each request, or only the mean of finished requests.
    sizes_known: bool = True
    #: Poll interval of the controller. The live one polls every second; longer intervals simulate large fleets faster.
    poll_interval_s: float = 1.0
    #: Unix time at which the traffic begins, for schedules and recurring load.
    start_unix_s: float = 0.0
    #: Named machines with several GPUs; none: `gpus` GPUs of one machine that does not fail.
    machines: Sequence[SimMachine] = ()
    #: Network switches between the machines.
    switches: Sequence[SimSwitch] = ()

    @property
    def has_failures(self) -> bool:
        """Whether workers, machines or switches fail."""
        lives = [profile.mean_lifetime_s for profile in self.profiles.values()]
        lives += [machine.mean_life_s for machine in self.machines]
        lives += [switch.mean_life_s for switch in self.switches]
        return any(life is not None for life in lives)

    def targets(self) -> dict[str, ScalingTarget]:
        """Return every model as a scaling target on all devices."""
        slots = [slot for machine in self.machines for slot in machine.slots]
        slots = slots or [f"cuda:{number}" for number in range(self.gpus)]
        return {name: ScalingTarget(scaling, slots) for name, scaling in self.scalings.items()}

    def failures(self) -> list[MachineFailure]:
        """Return the failures of machines and switches, in order of time."""
        return failures_of(self.machines, self.span_s, self.seed, self.switches)

    def run(
        self,
        agent: ScalingAgent,
        targets: Mapping[str, ScalingTarget],
        *,
        sample_s: float = float("inf"),
        on_progress: Callable[[float], None] = ignore_progress,
    ) -> SimulationResult:
        """Simulate the agent. `on_progress` receives the simulated time at every sample."""
        models = {
            name: ModelSim(replace(profile, max_wait_s=targets[name].scaling.slo.max_wait_s), *self.traffic[name])
            for name, profile in self.profiles.items()
        }
        simulation = Simulation(
            SimCluster(models, self.seed, failures=self.failures(), machines=self.machines),
            agent,
            targets,
            sample_s=sample_s,
            sizes_known=self.sizes_known,
            poll_interval_s=self.poll_interval_s,
            start_unix_s=self.start_unix_s,
        )
        return simulation.run(self.span_s, on_progress)


# ---- traffic operations and variants


def slice_traffic(traffic: Traffic, start_s: float, end_s: float) -> Traffic:
    """Return the requests of a time range, with times relative to its start."""
    return traffic_of(one._replace(at=one.at - start_s) for one in traffic.requests if start_s <= one.at < end_s)


def merge_traffic(traces: Mapping[str, Traffic]) -> Traffic:
    """Return the traffic of all models as that of one."""
    if len(traces) == 1:
        return next(iter(traces.values()))
    return traffic_of(request for traffic in traces.values() for request in traffic.requests)


def scale_work(traffic: Traffic, factor: float) -> Traffic:
    """Multiply the work of every request."""
    return traffic._replace(work=[work * factor for work in traffic.work])


def reverse_time(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """Reverse the order of the requests in time."""
    del seed
    end_s = max([span_s, *traffic.times[-1:]])  # no request before 0, even if the last is after the span
    return traffic_of(request._replace(at=end_s - request.at) for request in reversed(traffic.requests))


def fewer_heavier(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """Keep a third of the requests with three times the work each."""
    del span_s
    rng = random.Random(seed)
    return traffic_of(one._replace(work_s=3 * one.work_s) for one in traffic.requests if rng.random() < 1 / 3)


def add_pairs(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """Add 25 % more requests: a quarter of all requests get one copy within two seconds."""
    del span_s
    return _with_copies(traffic, 1 / 4, 1, seed)


def add_bunches(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """Add 25 % more requests: one in sixteen requests gets four copies within two seconds."""
    del span_s
    return _with_copies(traffic, 1 / 16, 4, seed)


def _with_copies(traffic: Traffic, share: float, copies: int, seed: int) -> Traffic:
    rng = random.Random(seed)
    given = traffic.requests
    more = [one._replace(at=one.at + rng.uniform(0, 2)) for one in given if rng.random() < share for _ in range(copies)]
    return traffic_of([*given, *more])


def mix_sizes(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """Give a share of the requests six times the work; the share differs by hour, from 0 to 35 %."""
    rng = random.Random(seed)
    shares = [rng.uniform(0, 0.35) for _ in range(int(span_s // 3600) + 2)]
    work = [
        6 * work if rng.random() < shares[int(at // 3600)] else work
        for at, work in zip(traffic.times, traffic.work, strict=True)
    ]
    return traffic._replace(work=work)


#: Variants by name: the change of the traffic, and the factor for the maximum number of workers.
VARIANTS: Mapping[str, tuple[Callable[[Traffic, float, int], Traffic], float]] = {
    "reversed": (reverse_time, 1.0),
    "half": (lambda traffic, _span_s, _seed: scale_work(traffic, 0.5), 1.0),
    "double": (lambda traffic, _span_s, _seed: scale_work(traffic, 2.0), 2.0),
    "heavier": (fewer_heavier, 1.0),
    "paired": (add_pairs, 1.0),
    "bunched": (add_bunches, 1.0),
    "mixed": (mix_sizes, 2.0),
}


class Preset(NamedTuple):
    """A named scenario of one model, without its traffic."""

    scale_work: float
    batch: int = 1
    #: Share of a step's time that does not grow with the batch.
    fixed_share: float = 1.0
    max_workers: int = 12
    max_wait_s: float = 10.0
    variant: str | None = None


#: Designed for a day of image requests with a mean work of 18 s.
PRESETS: Mapping[str, Preset] = {
    "s2": Preset(0.25),
    "s3": Preset(0.30, batch=4, fixed_share=0.3),
    "s6": Preset(0.25, max_wait_s=30.0, variant="mixed"),
}


def from_preset(
    preset: Preset, traffic: Traffic, span_s: float, *, cold_starts_s: Sequence[float] = (40.0,), seed: int = 0
) -> Scenario:
    """Return the scenario of a preset with the given traffic."""
    traffic, max_workers = scale_work(traffic, preset.scale_work), preset.max_workers
    if preset.variant:
        change, factor = VARIANTS[preset.variant]
        traffic, max_workers = change(traffic, span_s, seed), round(max_workers * factor)
    profile = WorkerProfile("m", batch_slowdowns(preset.batch, preset.fixed_share), tuple(cold_starts_s))
    scaling = Scaling(min_workers=1, max_workers=max_workers, slo={"max_wait_s": preset.max_wait_s})
    return Scenario({"m": traffic}, {"m": profile}, {"m": scaling}, max_workers, span_s, seed)
