"""Scaling commands and the controller's report, exchanged between the balancer and the controller.

People send commands to the balancer's HTTP API. The controller posts its report there every second and receives the
pending commands in the answer.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

#: Decisions that the balancer keeps, and that the controller keeps for a balancer that restarts.
MAX_DECISIONS = 1000
#: Decisions in one report; the following reports carry the rest.
MAX_DECISIONS_PER_REPORT = 200
#: The longest duration of an override.
MAX_HOLD_S = 30 * 86400.0

Text = Annotated[str, msgspec.Meta(max_length=20_000)]
Name = Annotated[str, msgspec.Meta(max_length=200)]


# ---- commands


class Scale(msgspec.Struct, frozen=True, tag="scale"):
    """Override the number of the model's workers for `hold_s` seconds."""

    model: str
    workers: int
    hold_s: float


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Stop making decisions. Workers that die are still replaced."""


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """End the override of one model; without a model, end all overrides and the pause."""

    model: str | None = None


class Reload(msgspec.Struct, frozen=True, tag="reload"):
    """Read the configuration again, and replace all workers of `models` even if no setting changed."""

    models: tuple[str, ...] = ()


class DrainWorker(msgspec.Struct, frozen=True, tag="drain"):
    """Let a worker finish its tasks and end. A policy that still needs it starts another one."""

    worker: str


class RestartWorker(msgspec.Struct, frozen=True, tag="restart"):
    """Replace a worker by a rolling update: where a device is free, the new one starts first."""

    worker: str


Command = Scale | Pause | Resume | Reload | DrainWorker | RestartWorker


class PendingCommand(msgspec.Struct, frozen=True):
    """A command that awaits its result. The controller executes each id once, however often it receives it."""

    id: str
    command: Command


class PendingCommands(msgspec.Struct, frozen=True):
    """The balancer's answer to a report."""

    commands: list[PendingCommand]
    #: Number of the newest decision that the balancer has; 0 if it has none.
    last_decision: int


class CommandResult(msgspec.Struct, frozen=True):
    """The outcome of a command."""

    id: Name
    #: Why the command was rejected; empty if it was executed.
    error: Text = ""
    #: The invalid parameter.
    param: Name | None = None
    #: Changes in effect, changes that a rolling update brings, and changes that need a restart of the server.
    applied: tuple[Text, ...] = ()
    rolling: tuple[Text, ...] = ()
    needs_restart: tuple[Text, ...] = ()


class OrderDone(msgspec.Struct, frozen=True):
    """The API's answer to an executed command."""

    #: Changes in effect.
    applied: tuple[str, ...]
    #: Changes that a rolling update brings: a new worker starts, then an old one stops.
    rolling: tuple[str, ...]
    #: Changes that need a restart of the server.
    needs_restart: tuple[str, ...]


# ---- the report


class DecisionRecord(msgspec.Struct, frozen=True):
    """One scaling decision. `time` is in Unix seconds; `number` counts up from 1."""

    number: int
    time: float
    model: Name
    #: The event that caused the decision, such as `tick`.
    trigger: Name
    #: Workers that are ready, starting, or to be started in place of dead ones.
    provisioned: int
    ready: int
    desired: int
    #: False if data was missing: the decision then changes nothing.
    valid: bool
    reason: Text
    #: The policy's inputs by name.
    inputs: dict[Name, float]


class OverrideRecord(msgspec.Struct, frozen=True):
    """A number of workers that a command set. `until` is in Unix seconds."""

    workers: int
    until: float


class ReplicaRecord(msgspec.Struct, frozen=True):
    """A worker process of the controller."""

    worker: Name
    model: Name
    device: Name
    pid: int
    stage: Name
    load: int
    age_s: float
    #: Identifies the settings it was started with.
    generation: Name
    #: Why it is to be replaced; empty if it is not.
    outdated: Text = ""


class ModelRecord(msgspec.Struct, frozen=True):
    """The workers and the scaling state of one model."""

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
    #: The inputs of the last decision.
    inputs: dict[Name, float]
    #: Why fewer workers run than decided; empty if none are missing.
    blocked_reason: Text = ""
    override: OverrideRecord | None = None
    crashes: int = 0
    #: Progress of the rolling update; empty if there is none.
    rolling_update: Text = ""
    #: Standby processes.
    spares: int = 0
    cold_start_s: float | None = None
    #: Why none of its workers can start; empty while one serves, or may soon.
    cannot_start: Text = ""
    #: Which kind of reason `blocked_reason` is.
    blocked_kind: Name = ""
    #: Crashes of its workers since the controller started, by kind.
    crashes_by_kind: dict[Name, int] = {}


class DeviceRecord(msgspec.Struct, frozen=True):
    """A device of the pool."""

    device: Name
    name: Text
    workers: Annotated[tuple[Name, ...], msgspec.Meta(max_length=1000)]
    memory_bytes: int | None = None
    #: Why no worker is started on it; empty if the device is healthy.
    unhealthy_reason: Text = ""
    #: As its driver last reported; None if it does not. The utilisation is a share.
    temperature_c: float | None = None
    power_w: float | None = None
    utilisation: float | None = None


class MachineRecord(msgspec.Struct, frozen=True):
    """A machine that runs workers for the controller. Its devices have its name in front: `gpu-box/cuda:0`."""

    machine: Name
    #: Seconds since the last report of its agent arrived; None: none has since the server started.
    last_report_age_s: float | None
    #: No report has arrived for `workers.lost_after_s`.
    silent: bool
    #: Why no worker is started there, such as its silence or another version; empty if it is used.
    unused_reason: Text = ""
    #: Models whose weights are at hand there.
    models: Annotated[tuple[Name, ...], msgspec.Meta(max_length=1000)] = ()
    #: Models that cannot run there, with the reason.
    unusable_models: Annotated[dict[Name, Text], msgspec.Meta(max_length=1000)] = {}
    #: Main memory and the available part of it; None if it is not reported.
    memory_bytes: int | None = None
    available_bytes: int | None = None


class ControllerReport(msgspec.Struct, frozen=True):
    """The controller's state. `time` is in Unix seconds."""

    time: float
    uptime_s: float
    models: Annotated[tuple[ModelRecord, ...], msgspec.Meta(max_length=1000)]
    replicas: Annotated[tuple[ReplicaRecord, ...], msgspec.Meta(max_length=10_000)]
    devices: Annotated[tuple[DeviceRecord, ...], msgspec.Meta(max_length=10_000)]
    #: Unix seconds; None if decisions are not paused.
    paused_since: float | None
    #: `decisions` holds the oldest ones above this number: the newest that the balancer had when it last answered.
    decisions_after: int
    decisions: Annotated[tuple[DecisionRecord, ...], msgspec.Meta(max_length=MAX_DECISIONS_PER_REPORT)]
    #: Number of the last decision; below the balancer's own if the controller has started to count again.
    last_decision: int
    command_results: Annotated[tuple[CommandResult, ...], msgspec.Meta(max_length=1000)] = ()
    #: Workers that gave up their device to another model since the controller started.
    swaps: int = 0
    #: The other machines; the controller's own has no agent and is not listed.
    machines: Annotated[tuple[MachineRecord, ...], msgspec.Meta(max_length=1000)] = ()


class DecisionPage(msgspec.Struct, frozen=True):
    """Decisions, newest first. `has_more` is true if older ones exist."""

    decisions: list[DecisionRecord]
    has_more: bool
