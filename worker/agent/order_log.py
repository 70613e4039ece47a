"""Which orders of the controller are executed: each one once, whatever is repeated, lost or late. Pure."""

from __future__ import annotations

import msgspec

from wire.agents import AgentOrders, Order


class OrderPosition(msgspec.Struct, frozen=True):
    """The last executed order. On disk it outlives the agent."""

    #: Of the controller whose orders are followed.
    epoch: int = 0
    executed: int = 0


class OrderLog:
    """Takes in orders in the sequence of their numbers."""

    def __init__(self, position: OrderPosition) -> None:
        self.position = position

    def __repr__(self) -> str:
        return f"<OrderLog at {self.position}>"

    def is_new_controller(self, message: AgentOrders) -> bool:
        return message.epoch > self.position.epoch

    def take(self, message: AgentOrders) -> list[Order]:
        """Return the orders to execute now. Those of an earlier controller are dropped.

        A number that is left out was withdrawn: the controller counts it as never given.
        """
        if message.epoch < self.position.epoch:
            return []
        executed = self.position.executed if message.epoch == self.position.epoch else 0
        due = []
        for each in message.orders:
            if each.number > executed:
                due.append(each.order)
                executed = each.number
        self.position = OrderPosition(message.epoch, executed)
        return due
