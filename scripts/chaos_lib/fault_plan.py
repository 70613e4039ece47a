"""The plan of a chaos run: requests and faults, drawn from a seed.

The same seed, profile and length give the same requests and the same faults. Which worker a fault hits follows
from `position` and from the workers that run at that moment, so that two runs differ only in time.
"""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

#: How a request is sent. `slow` reads its stream in small parts; `abort` closes the connection early, and `repeat` then
#: sends the same request with its key at once.
RequestMode = Literal["sync", "predict", "stream", "slow", "abort", "abort_stream", "repeat", "job", "follow"]
#: `machine`: an agent with all its workers; `network`: the connections of a machine, which stop to forward, or break.
Target = Literal["worker", "balancer", "controller", "machine", "agent", "network"]

#: Relative frequency of each mode.
_MODE_WEIGHTS: dict[RequestMode, int] = {
    "sync": 6,
    "predict": 3,
    "stream": 5,
    "slow": 2,
    "abort": 1,
    "abort_stream": 1,
    "repeat": 2,
    "job": 5,
    "follow": 3,
}
#: Modes that read events.
_STREAMED: frozenset[RequestMode] = frozenset({"stream", "slow", "abort_stream", "follow"})
#: Share of requests with an `Idempotency-Key`, and share of these that are sent twice.
_KEYED_SHARE, _RESENT_SHARE = 0.5, 0.4
#: Period of the request rate. It makes the controller start and stop workers.
_WAVE_S = 20.0
_PROMPTS = ("a seven", "a red two on white paper", "zero in blue ink", "a handwritten four")


@dataclass(frozen=True)
class LoadShape:
    """Parameters of the requests and faults of a profile."""

    #: Highest and lowest request rate, in requests per second.
    peak_rps: float
    base_rps: float
    steps: Sequence[int]
    sizes: Sequence[str]
    #: Images, or calls, of a request, at most.
    max_images: int
    #: Number of distinct seeds; few where each reference image has to be generated.
    seed_count: int
    #: Share of requests with `reproducible`.
    reproducible: float
    #: Mean seconds between two faults.
    fault_interval_s: float
    #: Longest time that a process is stopped or absent.
    max_pause_s: float
    #: Some requests ask for a stream.
    has_streams: bool = True
    #: Victims are machines.
    has_machines: bool = False


@dataclass(frozen=True)
class PlannedRequest:
    """One request of one client."""

    id: str
    #: Seconds after the start of the load.
    at_s: float
    #: Name of the API key.
    owner: str
    mode: RequestMode
    prompt: str
    seed: int
    steps: int
    size: str
    n: int
    reproducible: bool
    idempotency: str | None
    #: Seconds until the request is sent a second time.
    resend_after_s: float | None
    #: `abort*` and `repeat`: seconds until the client closes the connection.
    abort_after_s: float
    priority: int

    @property
    def has_key(self) -> bool:
        return self.idempotency is not None

    @property
    def is_job(self) -> bool:
        return self.mode in ("job", "follow")


@dataclass(frozen=True)
class Fault:
    """A signal to one process."""

    at_s: float
    target: Target
    signum: signal.Signals
    #: The worker by age, from 0 (the oldest) to 1 (the newest).
    position: float
    #: Seconds until a stopped process is continued, or a dead controller is restarted.
    duration_s: float

    def __str__(self) -> str:
        if self.target == "network":
            is_cut = self.signum == signal.SIGSTOP
            return "the network of a machine is cut" if is_cut else "the connections of a machine break"
        one = "the" if self.target in ("balancer", "controller") else "an" if self.target == "agent" else "a"
        return f"{self.signum.name} to {one} {self.target}"


#: Faults are drawn from shuffled rounds of these, so that each kind occurs early and often.
FAULT_WEIGHTS: Mapping[tuple[Target, signal.Signals], int] = {
    ("worker", signal.SIGKILL): 4,
    ("worker", signal.SIGTERM): 2,
    ("worker", signal.SIGSTOP): 2,
    ("balancer", signal.SIGKILL): 2,
    ("balancer", signal.SIGTERM): 1,
    ("balancer", signal.SIGSTOP): 1,
    ("controller", signal.SIGKILL): 2,
    ("controller", signal.SIGTERM): 1,
    ("controller", signal.SIGSTOP): 1,
}


#: The same of a server with several machines.
MACHINE_FAULT_WEIGHTS: Mapping[tuple[Target, signal.Signals], int] = {
    ("machine", signal.SIGKILL): 4,
    ("machine", signal.SIGSTOP): 2,
    ("network", signal.SIGSTOP): 4,
    ("network", signal.SIGKILL): 2,
    ("agent", signal.SIGKILL): 2,
    ("balancer", signal.SIGKILL): 1,
    ("controller", signal.SIGKILL): 1,
    ("controller", signal.SIGTERM): 1,
}


def plan_requests(seed: str, load: LoadShape, owners: Sequence[str], seconds: float) -> list[PlannedRequest]:
    """Return the requests of the run in the order of sending."""
    rng = random.Random(f"asks {seed}")
    planned: list[PlannedRequest] = []
    at = 0.0
    while (at := at + rng.expovariate(_rate(load, at))) < seconds:
        planned.append(_draw_request(f"request-{len(planned):04}", at, rng, load, owners))
    return planned


def plan_faults(seed: str, load: LoadShape, seconds: float) -> list[Fault]:
    """Return the faults of the run. The last 15 s, at most a fifth of the time, have none."""
    rng = random.Random(f"troubles {seed}")
    planned: list[Fault] = []
    weights = MACHINE_FAULT_WEIGHTS if load.has_machines else FAULT_WEIGHTS
    current_round: list[tuple[Target, signal.Signals]] = []
    at, end = load.fault_interval_s / 2, seconds - min(15.0, seconds / 5)
    while at < end:
        if not current_round:
            current_round = rng.sample(list(weights), sum(weights.values()), counts=list(weights.values()))
        target, signum = current_round.pop()
        planned.append(Fault(at, target, signum, rng.random(), rng.uniform(0.2, 1.0) * load.max_pause_s))
        at += rng.uniform(0.5, 1.5) * load.fault_interval_s
    return planned


def _rate(load: LoadShape, at: float) -> float:
    """Return the requests per second at this time."""
    swing = (1 - math.cos(2 * math.pi * at / _WAVE_S)) / 2
    return load.base_rps + (load.peak_rps - load.base_rps) * swing


def _draw_request(name: str, at: float, rng: random.Random, load: LoadShape, owners: Sequence[str]) -> PlannedRequest:
    modes = {mode: weight for mode, weight in _MODE_WEIGHTS.items() if load.has_streams or mode not in _STREAMED}
    mode = rng.choices(list(modes), list(modes.values()))[0]
    keyed = (rng.random() < _KEYED_SHARE or mode == "repeat") and not mode.startswith("abort")
    again = keyed and mode != "repeat" and rng.random() < _RESENT_SHARE
    number = rng.randrange(load.seed_count)
    return PlannedRequest(
        id=name,
        at_s=at,
        owner=rng.choice(owners),
        mode=mode,
        prompt=_PROMPTS[number % len(_PROMPTS)],
        seed=100 * number,
        steps=rng.choice(load.steps),
        size=load.sizes[0] if mode == "predict" else rng.choice(load.sizes),
        n=1 if mode == "predict" else rng.randint(1, load.max_images),
        reproducible=rng.random() < load.reproducible,
        idempotency=f"{name}-{rng.getrandbits(64):016x}" if keyed else None,
        resend_after_s=rng.uniform(0.0, 4.0) if again else None,
        abort_after_s=rng.uniform(0.05, 1.5),
        priority=rng.choice((0, 0, 0, 1)),
    )
