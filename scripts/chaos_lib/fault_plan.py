"""What will be asked and what will be broken, drawn from a seed before anything starts. Pure.

The same seed, profile and length give the same requests and the same troubles. Which worker a trouble hits follows
from `pick` and from who is there at that moment, so that two runs differ only in time.
"""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

#: How a request is made. `slow` reads its stream a little now and then, `hang_up` leaves in the middle.
Way = Literal["sync", "predict", "stream", "slow", "hang_up", "hang_up_stream", "job", "follow"]
Target = Literal["worker", "balancer", "controller"]

#: Ways with their weights.
_WAYS: dict[Way, int] = {
    "sync": 6,
    "predict": 3,
    "stream": 5,
    "slow": 2,
    "hang_up": 1,
    "hang_up_stream": 1,
    "job": 5,
    "follow": 3,
}
#: Part of the requests that carry an `Idempotency-Key`, and part of those that are sent once more on purpose.
_KEYED, _AGAIN = 0.5, 0.4
#: Seconds from one rush of requests to the next: the controller has reason to start workers and to let them go.
_WAVE_S = 20.0
_PROMPTS = ("a seven", "a red two on white paper", "zero in blue ink", "a handwritten four")


@dataclass(frozen=True)
class Wishes:
    """What a profile asks for."""

    #: Requests per second in the middle of a rush, and between two.
    rush: float
    lull: float
    steps: Sequence[int]
    sizes: Sequence[str]
    #: Most images of a request.
    most: int
    #: How many different seeds there are; few, where each picture alone has to be drawn for comparison.
    seeds: int
    #: Part of the requests that ask for equal bytes under any load.
    reproducible: float
    #: Mean seconds between two troubles.
    gap_s: float
    #: Longest time that a process is stopped or missing.
    pause_s: float


@dataclass(frozen=True)
class Ask:
    """One request of one client."""

    id: str
    #: Seconds after the start of the load.
    at_s: float
    #: Name of the API key.
    owner: str
    way: Way
    prompt: str
    seed: int
    steps: int
    size: str
    n: int
    reproducible: bool
    idempotency: str | None
    #: It is sent once more, on purpose, so many seconds after it was sent first.
    again_s: float | None
    #: `hang_up*`: seconds until the client leaves.
    leave_s: float
    priority: int

    @property
    def is_job(self) -> bool:
        """Whether it is a durable job."""
        return self.way in ("job", "follow")


@dataclass(frozen=True)
class Trouble:
    """One thing that is done to one process."""

    at_s: float
    target: Target
    how: signal.Signals
    #: Which of the workers there are, from 0 (the oldest) to 1 (the newest).
    pick: float
    #: Seconds until a stopped process goes on, or a dead controller is started again.
    for_s: float

    def __str__(self) -> str:
        return f"{self.how.name} to {'a' if self.target == 'worker' else 'the'} {self.target}"


#: Troubles come in shuffled rounds of these, so that each kind comes early and often enough.
DECK: Mapping[tuple[Target, signal.Signals], int] = {
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


def asks(seed: str, wishes: Wishes, owners: Sequence[str], seconds: float) -> list[Ask]:
    """The requests of the whole run, in the order in which they are sent."""
    chance = random.Random(f"asks {seed}")
    made: list[Ask] = []
    at = 0.0
    while (at := at + chance.expovariate(_rate(wishes, at))) < seconds:
        made.append(_ask(f"ask-{len(made):04}", at, chance, wishes, owners))
    return made


def troubles(seed: str, wishes: Wishes, seconds: float) -> list[Trouble]:
    """The troubles of the whole run; the last quarter of a minute, at most a fifth of the time, is left to recover."""
    chance = random.Random(f"troubles {seed}")
    made: list[Trouble] = []
    deck: list[tuple[Target, signal.Signals]] = []
    at, end = wishes.gap_s / 2, seconds - min(15.0, seconds / 5)
    while at < end:
        if not deck:
            deck = chance.sample(list(DECK), sum(DECK.values()), counts=list(DECK.values()))
        target, how = deck.pop()
        made.append(Trouble(at, target, how, chance.random(), chance.uniform(0.2, 1.0) * wishes.pause_s))
        at += chance.uniform(0.5, 1.5) * wishes.gap_s
    return made


def _rate(wishes: Wishes, at: float) -> float:
    """Requests per second at this time: rushes and lulls."""
    swing = (1 - math.cos(2 * math.pi * at / _WAVE_S)) / 2
    return wishes.lull + (wishes.rush - wishes.lull) * swing


def _ask(name: str, at: float, chance: random.Random, wishes: Wishes, owners: Sequence[str]) -> Ask:
    way = chance.choices(list(_WAYS), list(_WAYS.values()))[0]
    keyed = chance.random() < _KEYED and not way.startswith("hang_up")
    again = keyed and chance.random() < _AGAIN
    number = chance.randrange(wishes.seeds)
    return Ask(
        id=name,
        at_s=at,
        owner=chance.choice(owners),
        way=way,
        prompt=_PROMPTS[number % len(_PROMPTS)],
        seed=100 * number,
        steps=chance.choice(wishes.steps),
        size=wishes.sizes[0] if way == "predict" else chance.choice(wishes.sizes),
        n=1 if way == "predict" else chance.randint(1, wishes.most),
        reproducible=chance.random() < wishes.reproducible,
        idempotency=f"{name}-{chance.getrandbits(64):016x}" if keyed else None,
        again_s=chance.uniform(0.0, 4.0) if again else None,
        leave_s=chance.uniform(0.05, 1.5),
        priority=chance.choice((0, 0, 0, 1)),
    )
