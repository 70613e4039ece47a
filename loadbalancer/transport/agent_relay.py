"""Forwards between the agents of machines and the controller. It keeps the last report of each, and decides nothing."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from configs.text import printable
from loadbalancer.transport.worker_routes import RemoteRoute
from wire.agents import (
    AgentAck,
    AgentHello,
    AgentOrders,
    AgentReject,
    AgentReport,
    AgentState,
    AgentStates,
    FromAgent,
    ListFiles,
    ReadFile,
    ToAgent,
)
from wire.messages import PROTOCOL

log = logging.getLogger(__name__)

FileRequest = ListFiles | ReadFile

#: Connections of replaced agents that are remembered for each machine.
_MAX_REPLACED = 16


@dataclass(slots=True)
class _Machine:
    """A machine's connection and what it has reported."""

    route: RemoteRoute
    hello: AgentHello
    received_at: float
    report: AgentReport | None = None
    refused: str = ""
    #: Numbers of the exits that this balancer has acted on.
    exits: set[int] = field(default_factory=set)
    #: Connections of other agents with this key, which a later Hello has replaced.
    replaced: deque[RemoteRoute] = field(default_factory=lambda: deque(maxlen=_MAX_REPLACED))


class AgentRelay:
    """The machines by name, which is the name of the agent's key. All methods are called in the event loop."""

    def __init__(self, heartbeat_s: float, clock: Callable[[], float]) -> None:
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._started_at = clock()
        self._machines: dict[str, _Machine] = {}
        self._allowed: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<AgentRelay of {len(self._machines)} machines>"

    def on_message(self, route: RemoteRoute, message: FromAgent) -> tuple[list[ToAgent], list[str], FileRequest | None]:
        """Take in a message. Return the replies, the workers that have ended, and a request for files.

        `route.key` is the machine's name: nobody else has its key.
        """
        if isinstance(message, AgentHello):
            return [self._accept(route, message)], [], None
        machine = self._machines.get(route.key)
        if machine is None or machine.route != route or machine.refused:
            if machine is not None and route in machine.replaced:
                reason = f"another agent with the key {route.key} has connected later; each machine needs its own"
                return [AgentReject(reason, fatal=True)], [], None
            # ZeroMQ connects again by itself, with another identity, and the agent does not notice.
            return [AgentReject("unknown agent: say Hello")], [], None
        machine.received_at = self._clock()
        if isinstance(message, AgentReport):
            machine.report = message
            return [AgentAck(self._heartbeat_s)], self._new_exits(machine, message), None
        return [], [], message

    def _accept(self, route: RemoteRoute, hello: AgentHello) -> ToAgent:
        former = self._machines.get(route.key)
        machine = _Machine(route, hello, self._clock())
        if former is not None:
            machine.replaced = former.replaced
            if former.hello.session == hello.session:
                machine.report, machine.exits = former.report, former.exits
            elif former.route != route:
                machine.replaced.append(former.route)
        self._machines[route.key] = machine
        if hello.protocol != PROTOCOL:
            version = printable(hello.version, 40) or "?"
            machine.refused = (
                f"its agent speaks protocol {hello.protocol} (version {version}), the server {PROTOCOL}: "
                "install the same version on both"
            )
            log.error("the agent of %s is refused: %s", route.key, machine.refused)
            return AgentReject(machine.refused, fatal=True)
        log.info("the agent of %s has connected: %d devices", route.key, len(hello.devices))
        return AgentAck(self._heartbeat_s)

    @staticmethod
    def _new_exits(machine: _Machine, report: AgentReport) -> list[str]:
        """Return the workers whose end is reported for the first time. Only those of this machine count."""
        prefix = f"{machine.route.key}:"
        new = [ended for ended in report.exits if ended.number not in machine.exits]
        machine.exits = {ended.number for ended in report.exits}
        return [ended.process.worker for ended in new if ended.process.worker.startswith(prefix)]

    def on_orders(self, orders: Mapping[str, AgentOrders]) -> list[tuple[RemoteRoute, AgentOrders]]:
        """Return where the orders go; those of a machine that is not connected are dropped, and come again."""
        found = []
        for name, each in orders.items():
            machine = self._machines.get(name)
            if machine is not None and not machine.refused:
                found.append((machine.route, each))
        return found

    def states(self) -> AgentStates:
        """Return every machine that has connected since the start."""
        now = self._clock()
        machines = {
            name: AgentState(machine.hello, machine.report, max(now - machine.received_at, 0.0), machine.refused)
            for name, machine in self._machines.items()
        }
        return AgentStates(machines, now - self._started_at, self._allowed)

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget machines whose keys are revoked: all but these."""
        self._allowed = names
        for name in self._machines.keys() - names:
            del self._machines[name]
