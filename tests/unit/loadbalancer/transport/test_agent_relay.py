"""The balancer's part between agents and the controller: it forwards, and never takes one machine for another."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.transport.agent_relay import AgentRelay
from loadbalancer.transport.worker_routes import RemoteRoute
from wire.agents import (
    MAX_TAIL,
    AgentAck,
    AgentExit,
    AgentHello,
    AgentOrders,
    AgentProcess,
    AgentReject,
    AgentReport,
    DeviceInfo,
    FilePart,
    ListFiles,
    MalformedAgentMessage,
    decode_for_agent,
    decode_from_agent,
    encode_agent_message,
)
from wire.messages import PROTOCOL

BOX, OTHER = RemoteRoute(b"\0one", "box"), RemoteRoute(b"\0two", "other")
HELLO = AgentHello(PROTOCOL, "1.0", "s1", [DeviceInfo("cuda:0", "GPU", 24 << 30)])


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def relay(clock: Clock) -> AgentRelay:
    return AgentRelay(0.5, clock)


def ended(number: int, worker: str) -> AgentExit:
    return AgentExit(number, AgentProcess(worker, "m", "cuda:0", 1, 0.0), 0.0)


def test_report_and_silence_are_passed_on(relay: AgentRelay, clock: Clock) -> None:
    assert relay.on_message(BOX, HELLO) == ([AgentAck(0.5)], [], None)
    report = AgentReport(3, 4)
    assert relay.on_message(BOX, report) == ([AgentAck(0.5)], [], None)
    clock.now += 7
    states = relay.states()
    assert (states.machines["box"].report, states.machines["box"].silent_s, states.uptime_s) == (report, 7.0, 7.0)
    decoded = msgspec.json.decode(msgspec.json.encode(states), type=type(states))
    assert decoded == states


def test_agent_without_hello_is_asked_for_it(relay: AgentRelay) -> None:
    [reply] = relay.on_message(BOX, AgentReport(1, 1))[0]
    assert reply == AgentReject("unknown agent: say Hello")
    assert not relay.states().machines


def test_other_protocol_is_refused_and_shown(relay: AgentRelay) -> None:
    [reply] = relay.on_message(BOX, msgspec.structs.replace(HELLO, protocol=PROTOCOL - 1))[0]
    assert isinstance(reply, AgentReject)
    assert reply.fatal
    assert "install the same version on both" in reply.reason
    assert relay.states().machines["box"].refused == reply.reason
    assert relay.on_orders({"box": AgentOrders(1)}) == []


def test_later_agent_of_a_key_takes_its_place(relay: AgentRelay) -> None:
    relay.on_message(BOX, HELLO)
    again = RemoteRoute(b"\0new", "box")
    relay.on_message(again, msgspec.structs.replace(HELLO, session="s2"))
    [reply] = relay.on_message(BOX, AgentReport(1, 1))[0]
    assert isinstance(reply, AgentReject)
    assert reply.fatal
    assert relay.on_message(again, AgentReport(1, 1))[0] == [AgentAck(0.5)]
    assert relay.on_orders({"box": AgentOrders(1), "unknown": AgentOrders(1)}) == [(again, AgentOrders(1))]


def test_agent_whose_connection_broke_is_asked_for_hello(relay: AgentRelay) -> None:
    """ZeroMQ connects again by itself: the next report comes from a connection that is not known."""
    relay.on_message(BOX, HELLO)
    relay.on_message(BOX, AgentReport(1, 1))
    again = RemoteRoute(b"\0new", "box")
    assert relay.on_message(again, AgentReport(1, 2))[0] == [AgentReject("unknown agent: say Hello")]
    assert relay.on_message(again, HELLO)[0] == [AgentAck(0.5)]
    assert relay.on_message(again, AgentReport(1, 2))[0] == [AgentAck(0.5)]
    # What the former connection still held is no reason to end the agent.
    assert relay.on_message(BOX, AgentReport(1, 1))[0] == [AgentReject("unknown agent: say Hello")]
    assert relay.on_message(BOX, HELLO)[0] == [AgentAck(0.5)]
    assert relay.on_message(again, AgentReport(1, 3))[0] == [AgentReject("unknown agent: say Hello")]


def test_replaced_agents_are_refused_after_the_next_one_reconnects(relay: AgentRelay) -> None:
    relay.on_message(BOX, HELLO)
    later, again = RemoteRoute(b"\0two", "box"), RemoteRoute(b"\0new", "box")
    second = msgspec.structs.replace(HELLO, session="s2")
    relay.on_message(later, second)
    relay.on_message(again, second)
    [reply] = relay.on_message(BOX, AgentReport(1, 1))[0]
    assert isinstance(reply, AgentReject)
    assert reply.fatal


def test_exits_are_passed_once_and_of_its_own_workers_only(relay: AgentRelay) -> None:
    relay.on_message(BOX, HELLO)
    relay.on_message(OTHER, HELLO)
    exits = [ended(1, "box:a"), ended(2, "other:b"), ended(3, "local"), ended(4, "boxes:c")]
    assert relay.on_message(BOX, AgentReport(1, 1, exits=exits))[1] == ["box:a"]
    assert relay.on_message(BOX, AgentReport(1, 1, exits=[*exits, ended(5, "box:d")]))[1] == ["box:d"]
    assert relay.on_message(RemoteRoute(b"\0x", "box"), HELLO)[1] == []
    assert relay.on_message(RemoteRoute(b"\0x", "box"), AgentReport(1, 1, exits=exits))[1] == []


def test_revoked_machine_is_forgotten(relay: AgentRelay) -> None:
    relay.on_message(BOX, HELLO)
    relay.on_message(OTHER, HELLO)
    assert relay.on_message(OTHER, ListFiles("m"))[2] == ListFiles("m")
    relay.keep_only(frozenset({"other"}))
    assert relay.states().machines.keys() == {"other"}
    assert relay.states().allowed == {"other"}


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_any_frames_are_a_message_or_malformed(frames: list[bytes]) -> None:
    for decode in (decode_from_agent, decode_for_agent):
        with contextlib.suppress(MalformedAgentMessage):
            decode(frames)


@pytest.mark.parametrize(
    "message",
    [
        AgentReport(1, 1, processes=[AgentProcess("w" * 201, "m", "cuda:0", 1, 0.0)]),
        AgentReport(1, 1, exits=[msgspec.structs.replace(ended(1, "w"), tail="x" * (MAX_TAIL + 1))]),
        AgentReport(-1, 1),
        AgentReport(1, 1, available_bytes=-1),
        msgspec.structs.replace(HELLO, version="v" * 1001),
    ],
)
def test_message_beyond_its_bounds_is_malformed(message: AgentReport | AgentHello) -> None:
    with pytest.raises(MalformedAgentMessage):
        decode_from_agent(encode_agent_message(message))


def test_data_follows_the_part_of_a_file() -> None:
    part = FilePart("m", 0, 5)
    assert decode_for_agent(encode_agent_message(part, b"data")) == (part, b"data")
    assert decode_for_agent(encode_agent_message(AgentAck(1.0))) == (AgentAck(1.0), b"")
