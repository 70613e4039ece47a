"""What is simulated: traffic, workers and bounds put together; variants of traffic; scenarios by name. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from configs.scaling import Scaling
from controller.simulator.agents import Pilot, Role
from controller.simulator.cluster import Pool
from controller.simulator.model_sim import Service, Station, slow_downs
from controller.simulator.simulator import Replay, Replayed, silent


class Traffic(NamedTuple):
    """One model's requests: when each comes, in order, and the seconds that it needs alone on a worker."""

    times: Sequence[float]
    work: Sequence[float]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A pool, its models and their traffic."""

    traffic: Mapping[str, Traffic]
    services: Mapping[str, Service]
    scalings: Mapping[str, Scaling]
    #: How many workers the pool has room for.
    gpus: int
    #: How long it is paid for, at least, in seconds.
    span_s: float
    seed: int = 0
    #: Whether the server knows what each request needs, or only what requests needed on average.
    sizes_known: bool = True
    #: How often the controller looks. The live one does every second; a large fleet is simulated faster with more.
    look_every_s: float = 1.0

    def roles(self, scaling: Mapping[str, object] | None = None) -> dict[str, Role]:
        """Every model's part; `scaling` stands over what is set for each."""
        slots = [f"cuda:{number}" for number in range(self.gpus)]
        return {
            name: Role(Scaling.model_validate(own.model_dump(exclude_unset=True) | dict(scaling or {})), slots)
            for name, own in self.scalings.items()
        }

    def run(
        self,
        pilot: Pilot,
        roles: Mapping[str, Role],
        *,
        sample_s: float = float("inf"),
        tell: Callable[[float], None] = silent,
    ) -> Replayed:
        """One run of the pilot. `tell` hears how far it is, at every sample."""
        stations = {
            name: Station(replace(service, max_wait_s=roles[name].scaling.slo.max_wait_s), *self.traffic[name])
            for name, service in self.services.items()
        }
        replay = Replay(
            Pool(stations, self.seed),
            pilot,
            roles,
            sample_s=sample_s,
            sizes_known=self.sizes_known,
            look_every_s=self.look_every_s,
        )
        return replay.run(self.span_s, tell)


# ---- variants of a traffic


def scaled(traffic: Traffic, factor: float) -> Traffic:
    """Every request needs so many times what it did."""
    return Traffic(traffic.times, [work * factor for work in traffic.work])


def reversed_in_time(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """The day backwards."""
    del seed
    return Traffic([span_s - at for at in reversed(traffic.times)], list(reversed(traffic.work)))


def heavier(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """A third of the requests, each of three times the work."""
    del span_s
    chance = random.Random(seed)
    kept = [number for number in range(len(traffic.times)) if chance.random() < 1 / 3]
    return Traffic([traffic.times[number] for number in kept], [3 * traffic.work[number] for number in kept])


def paired(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """A quarter more requests: one of four brings another like itself within two seconds."""
    del span_s
    return _followed(traffic, 1 / 4, 1, seed)


def bunched(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """A quarter more requests: one of sixteen brings four others like itself within two seconds."""
    del span_s
    return _followed(traffic, 1 / 16, 4, seed)


def _followed(traffic: Traffic, part: float, others: int, seed: int) -> Traffic:
    chance = random.Random(seed)
    pairs = list(zip(traffic.times, traffic.work, strict=True))
    more = [(at + chance.uniform(0, 2), work) for at, work in pairs if chance.random() < part for _ in range(others)]
    times, work = zip(*sorted(pairs + more), strict=True)
    return Traffic(times, work)


def mixed(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """Some requests are six times as heavy: a share between none and 35 %, another one each hour."""
    chance = random.Random(seed)
    shares = [chance.uniform(0, 0.35) for _ in range(int(span_s // 3600) + 2)]
    work = [
        6 * work if chance.random() < shares[int(at // 3600)] else work
        for at, work in zip(traffic.times, traffic.work, strict=True)
    ]
    return Traffic(traffic.times, work)


def halved(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """Half the work."""
    del span_s, seed
    return scaled(traffic, 0.5)


def doubled(traffic: Traffic, span_s: float, seed: int = 0) -> Traffic:
    """Twice the work."""
    del span_s, seed
    return scaled(traffic, 2.0)


#: By name: the traffic's change, and by how much more workers there must be room for.
VARIANTS: Mapping[str, tuple[Callable[[Traffic, float, int], Traffic], float]] = {
    "reversed": (reversed_in_time, 1.0),
    "half": (halved, 1.0),
    "double": (doubled, 2.0),
    "heavier": (heavier, 1.0),
    "paired": (paired, 1.0),
    "bunched": (bunched, 1.0),
    "mixed": (mixed, 2.0),
}


class Preset(NamedTuple):
    """A scenario of one model by name; its traffic is given."""

    scale_work: float
    batch: int = 1
    alone: float = 1.0
    max_workers: int = 12
    max_wait_s: float = 10.0
    variant: str | None = None


#: Made for a day of image requests that take 18 s each on average.
PRESETS: Mapping[str, Preset] = {
    "s2": Preset(0.25),
    "s3": Preset(0.30, batch=4, alone=0.3),
    "s6": Preset(0.25, max_wait_s=30.0, variant="mixed"),
}


def from_preset(
    preset: Preset, traffic: Traffic, span_s: float, *, cold_starts_s: Sequence[float] = (40.0,), seed: int = 0
) -> Scenario:
    """The scenario of a preset and a day's traffic."""
    traffic, most = scaled(traffic, preset.scale_work), preset.max_workers
    if preset.variant:
        change, room = VARIANTS[preset.variant]
        traffic, most = change(traffic, span_s, seed), round(most * room)
    service = Service("m", slow_downs(preset.batch, preset.alone), tuple(cold_starts_s))
    scaling = Scaling(min_workers=1, max_workers=most, slo={"max_wait_s": preset.max_wait_s})
    return Scenario({"m": traffic}, {"m": service}, {"m": scaling}, most, span_s, seed)
