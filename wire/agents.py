"""The messages between the agent of a machine and the server: the balancer forwards them, the controller decides.

An agent connects like a worker over TCP, with a key of its own kind. It reports what its machine has and runs. The
controller's orders are numbered: an agent executes each number once, and a repeated order changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec

from wire.inputs import Count, Name
from wire.messages import Seconds, Sum

#: Most of what one machine has: devices, processes, models.
MAX_DEVICES = 1024
MAX_PROCESSES = 4096
MAX_MODELS = 1000
#: Exits of one report, and orders of one message. The rest follows.
MAX_EXITS = 64
MAX_ORDERS = 256
#: Characters of a log's end.
MAX_TAIL = 8192
#: Bytes of the settings of all models.
MAX_SETTINGS_BYTES = 1 << 20
#: Largest header of a message of an agent; the data of a file follows in a frame of its own.
MAX_AGENT_MESSAGE_BYTES = 4 << 20
#: Bytes of one part of a file.
MAX_PART_BYTES = 1 << 20
MAX_FILES = 2000
#: Kinds of files that are sent: weights, configurations, tokenizers, chat templates.
FETCHED_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab"})

Sentence = Annotated[str, msgspec.Meta(max_length=1000)]
Tail = Annotated[str, msgspec.Meta(max_length=MAX_TAIL)]
Digest = Annotated[str, msgspec.Meta(max_length=64)]
Sensor = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
#: Seconds that have passed since an event.
Age = Seconds
SettingsText = Annotated[str, msgspec.Meta(max_length=MAX_SETTINGS_BYTES)]


# ---- what an agent reports


class DeviceInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device, by its name on its own machine: `cuda:0`."""

    name: Name
    #: Product name.
    product: Sentence = ""
    #: Bytes that workers may share; None: memory is not counted.
    memory: Sum | None = None


class DriverReading(msgspec.Struct, frozen=True, omit_defaults=True):
    """A GPU as the driver of its machine reports it."""

    device: Name
    total_bytes: Sum | None = None
    used_bytes: Sum = 0
    #: Bytes of each process, by pid.
    processes: Annotated[dict[int, Sum], msgspec.Meta(max_length=MAX_PROCESSES)] = {}
    fault: Sentence = ""
    temperature_c: Sensor | None = None
    power_w: Sensor | None = None
    utilisation: Sensor | None = None


class AgentProcess(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker process of the machine."""

    worker: Name
    model: Name
    device: Name
    pid: Count
    age_s: Age
    generation: Digest = ""
    #: Time since its drain, and since a standby worker had loaded; None: not yet.
    drained_s: Age | None = None
    loaded_s: Age | None = None
    standby: bool = False


class AgentExit(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker process that has ended. Repeated until the controller has acknowledged its number."""

    number: Count
    process: AgentProcess
    #: Time since it was noticed.
    age_s: Age
    status: Annotated[int, msgspec.Meta(ge=-255, le=255)] | None = None
    tail: Tail = ""
    start_failure: Sentence = ""
    has_served: bool = False
    #: It ended while no agent ran, mostly with the whole machine.
    machine_failed: bool = False


# ---- agent -> head


class AgentHello(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """First message of a connection."""

    protocol: int
    #: Release of the agent's program, for people.
    version: Sentence
    #: Names one run of the agent: processes of an earlier one that are missing now have ended with it.
    session: Name
    devices: Annotated[list[DeviceInfo], msgspec.Meta(max_length=MAX_DEVICES)]
    memory_bytes: Sum | None = None


class AgentReport(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The state of the machine, sent at every change and as a heartbeat."""

    #: The controller whose orders it follows, and the last order that it has executed.
    epoch: Count
    executed: Count
    #: Digest of the models' settings that it has.
    settings: Digest = ""
    processes: Annotated[list[AgentProcess], msgspec.Meta(max_length=MAX_PROCESSES)] = []
    exits: Annotated[list[AgentExit], msgspec.Meta(max_length=MAX_EXITS)] = []
    #: Models whose weights are on the machine, and why others cannot run there.
    models: Annotated[list[Name], msgspec.Meta(max_length=MAX_MODELS)] = []
    unusable: Annotated[dict[Name, Sentence], msgspec.Meta(max_length=MAX_MODELS)] = {}
    readings: Annotated[list[DriverReading], msgspec.Meta(max_length=MAX_DEVICES)] = []
    available_bytes: Sum | None = None
    #: It stops, and starts nothing any more.
    stopping: bool = False


class ListFiles(msgspec.Struct, frozen=True, tag=True):
    """Ask for the files of a model."""

    model: Name


class ReadFile(msgspec.Struct, frozen=True, tag=True):
    """Ask for a part of a file of a model, by its place in the list."""

    model: Name
    file: Count
    offset: Sum
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_PART_BYTES)]


FromAgent = AgentHello | AgentReport | ListFiles | ReadFile


# ---- orders


class StartWorker(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Start a worker of this name, unless there is one. A standby worker's device is only a kind."""

    worker: Name
    model: Name
    device: Name
    generation: Digest
    standby: bool = False


class ActivateWorker(msgspec.Struct, frozen=True, tag=True):
    """Activate the standby worker on the device."""

    worker: Name
    device: Name


class DrainWorker(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Drain the worker."""

    worker: Name
    #: It returns its tasks at once.
    immediate: bool = False


class KillWorker(msgspec.Struct, frozen=True, tag=True):
    """Kill the worker."""

    worker: Name


class DrainAll(msgspec.Struct, frozen=True, tag=True):
    """Drain every worker after this time: the server stops. A controller that starts before then cancels it."""

    after_s: Seconds


Order = StartWorker | ActivateWorker | DrainWorker | KillWorker | DrainAll


class NumberedOrder(msgspec.Struct, frozen=True):
    """An order. Numbers count up from 1 within an epoch."""

    number: Count
    order: Order


class ModelSettings(msgspec.Struct, frozen=True):
    """The settings that workers read, as JSON texts of the sections of the configuration."""

    digest: Digest
    workers: SettingsText
    models: Annotated[dict[Name, SettingsText], msgspec.Meta(max_length=MAX_MODELS)]


# ---- head -> agent


class AgentAck(msgspec.Struct, frozen=True, tag=True):
    """Answers every report."""

    heartbeat_s: Seconds


class AgentReject(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Say Hello (again); or, if `fatal`, this agent is not accepted until it or the head is changed."""

    reason: Sentence
    fatal: bool = False


class AgentOrders(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The orders that are not executed yet, oldest first."""

    #: Of the controller: a later one has a larger epoch, and its orders replace those of the earlier one.
    epoch: Count
    orders: Annotated[list[NumberedOrder], msgspec.Meta(max_length=MAX_ORDERS)] = []
    #: Exits of this session up to this number are known.
    session: Name = ""
    exits_received: Count = 0
    #: Sent if the agent has others.
    settings: ModelSettings | None = None


class FileInfo(msgspec.Struct, frozen=True):
    """A file of a model, by its path below the model's folder."""

    path: Sentence
    size: Sum
    sha256: Digest


class FileList(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The files of a model, or why there are none to read."""

    model: Name
    files: Annotated[list[FileInfo], msgspec.Meta(max_length=MAX_FILES)] = []
    problem: Sentence = ""


class FilePart(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A part of a file, which follows in the next frame; or why it cannot be read."""

    model: Name
    file: Count
    offset: Sum
    problem: Sentence = ""


ToAgent = AgentAck | AgentReject | AgentOrders | FileList | FilePart


# ---- the controller's exchange with the balancer


class AgentExchange(msgspec.Struct, frozen=True):
    """The controller's orders by machine (`POST /internal/agents`)."""

    orders: Annotated[dict[Name, AgentOrders], msgspec.Meta(max_length=1000)]


class AgentState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A machine as the balancer knows it."""

    hello: AgentHello
    report: AgentReport | None
    #: Seconds since its last message.
    silent_s: Seconds
    #: Why it is not used, such as another version.
    refused: Sentence = ""


class AgentStates(msgspec.Struct, frozen=True):
    """All machines that have connected since the balancer started, by name."""

    machines: dict[str, AgentState]
    #: Age of the balancer.
    uptime_s: Seconds
    #: Machines whose agents may connect, whether or not they have.
    allowed: frozenset[str] = frozenset()


# ---- encoding


class MalformedAgentMessage(ValueError):
    """The frames are no message between an agent and the head."""


Message = TypeVar("Message")


def encode_agent_message(message: FromAgent | ToAgent, data: bytes = b"") -> list[bytes]:
    """Return the frames: the message, then the data of a `FilePart`."""
    return [_encoder.encode(message), data] if data else [_encoder.encode(message)]


def decode_from_agent(frames: Sequence[bytes | bytearray | memoryview]) -> FromAgent:
    """Raises `MalformedAgentMessage`."""
    if len(frames) != 1:
        raise MalformedAgentMessage(f"{len(frames)} frames")
    return _decode(_from_agent, frames[0])


def decode_for_agent(frames: Sequence[bytes]) -> tuple[ToAgent, bytes]:
    """Return the message and the data that came with it. Raises `MalformedAgentMessage`."""
    if not 1 <= len(frames) <= 2 or (len(frames) == 2 and len(frames[1]) > MAX_PART_BYTES):
        raise MalformedAgentMessage(f"{len(frames)} frames")
    return _decode(_for_agent, frames[0]), frames[1] if len(frames) == 2 else b""


def _decode(decoder: msgspec.msgpack.Decoder[Message], frame: bytes | bytearray | memoryview) -> Message:
    if len(frame) > MAX_AGENT_MESSAGE_BYTES:
        raise MalformedAgentMessage(f"it has {len(frame)} bytes")
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedAgentMessage(str(error) or "it is nested too deeply") from None


_encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_for_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)
