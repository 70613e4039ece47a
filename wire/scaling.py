"""What people, the balancer and the controller say to each other about the number of workers.

People order at the balancer, the one door. The controller reports there each second, and is handed what was ordered.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

#: Decisions that the balancer, and the controller for one that comes anew, remember.
KEPT_DECISIONS = 1000
#: Decisions of one report: those that it leaves out come with the next ones.
DECISIONS_OF_A_REPORT = 200
#: Longest that a number of workers may be held.
LONGEST_HOLD_S = 30 * 86400.0

Text = Annotated[str, msgspec.Meta(max_length=20_000)]
Name = Annotated[str, msgspec.Meta(max_length=200)]


# ---- orders


class Scale(msgspec.Struct, frozen=True, tag="scale"):
    """Hold the model at so many workers, for so long."""

    model: str
    workers: int
    hold_s: float


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Decide nothing more; what dies is still replaced."""


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Decide again, and end what is held: of this model, or of all, with the pause."""

    model: str | None = None


class Reload(msgspec.Struct, frozen=True, tag="reload"):
    """Read the configuration again, and replace the workers of these models even where nothing has changed."""

    models: tuple[str, ...] = ()


Order = Scale | Pause | Resume | Reload


class Numbered(msgspec.Struct, frozen=True):
    """An order under way. The controller obeys each id once, however often it is handed it."""

    id: str
    order: Order


class Orders(msgspec.Struct, frozen=True):
    """What the balancer answers to a report."""

    orders: list[Numbered]
    #: The newest decision that the balancer has, by number; 0 where it has none.
    decisions_to: int


class Obeyed(msgspec.Struct, frozen=True):
    """What became of an order."""

    id: Name
    #: Why it was not obeyed, for who gave it; empty where it was.
    refused: Text = ""
    #: The parameter that is wrong.
    param: Name | None = None
    #: What was done at once, what is being done worker by worker, and what needs a restart of the server.
    applied: tuple[Text, ...] = ()
    rolls: tuple[Text, ...] = ()
    needs_restart: tuple[Text, ...] = ()


# ---- the report


class DecisionRecord(msgspec.Struct, frozen=True):
    """One decision as it was made."""

    #: Counts up from 1, on and on.
    number: int
    #: Unix seconds.
    time: float
    model: Name
    #: Why just then: the tick, or what could not wait for it.
    woken: Name
    #: Workers that were ready, starting or owed.
    provisioned: int
    ready: int
    desired: int
    #: A decision that is not valid, for want of data, changes nothing.
    valid: bool
    reason: Text
    #: The numbers that it rests on, by name.
    inputs: dict[Name, float]


class HoldRecord(msgspec.Struct, frozen=True):
    """A number of workers that a person ordered. `until` is in Unix seconds."""

    workers: int
    until: float


class ReplicaRecord(msgspec.Struct, frozen=True):
    """A worker process of the controller's."""

    worker: Name
    model: Name
    device: Name
    pid: int
    stage: Name
    load: int
    age_s: float
    #: Which settings it runs with.
    generation: Name
    #: Why it is to be replaced; empty where it is not.
    outdated: Text = ""


class ModelRecord(msgspec.Struct, frozen=True):
    """One model's workers, and what is decided about them."""

    model: Name
    min_workers: int
    max_workers: int
    desired: int
    provisioned: int
    ready: int
    starting: int
    draining: int
    policy: Name
    reason: Text
    #: The numbers of the last decision.
    inputs: dict[Name, float]
    #: Why there are fewer workers than decided; empty where there are not.
    obstacle: Text = ""
    hold: HoldRecord | None = None
    crashes: int = 0
    #: How far the replacement of outdated workers is; empty where there is none.
    renewal: Text = ""
    #: Processes that stand by.
    spares: int = 0
    cold_start_s: float | None = None


class DeviceRecord(msgspec.Struct, frozen=True):
    """A device of the pool."""

    device: Name
    name: Text
    workers: Annotated[tuple[Name, ...], msgspec.Meta(max_length=1000)]
    memory_bytes: int | None = None
    #: Why nothing is started on it; empty where it is well.
    fault: Text = ""


class Report(msgspec.Struct, frozen=True):
    """How the controller sees the whole. `time` is Unix seconds."""

    time: float
    uptime_s: float
    models: Annotated[tuple[ModelRecord, ...], msgspec.Meta(max_length=1000)]
    replicas: Annotated[tuple[ReplicaRecord, ...], msgspec.Meta(max_length=10_000)]
    devices: Annotated[tuple[DeviceRecord, ...], msgspec.Meta(max_length=10_000)]
    #: Since when nothing is decided, by order; None where it is.
    paused_since: float | None
    #: The oldest of a number higher than this, in their order: the newest that the balancer had when it last answered.
    decisions_after: int
    decisions: Annotated[tuple[DecisionRecord, ...], msgspec.Meta(max_length=DECISIONS_OF_A_REPORT)]
    #: Number of the last decision; below what the balancer has where the controller has begun to count anew.
    last_decision: int
    obeyed: Annotated[tuple[Obeyed, ...], msgspec.Meta(max_length=1000)] = ()
    #: Workers that have given their device to another model since the controller started.
    swaps: int = 0


class DecisionPage(msgspec.Struct, frozen=True):
    """Decisions, the newest first."""

    decisions: list[DecisionRecord]
    #: Whether there are older ones: `before` the last of these.
    has_more: bool
