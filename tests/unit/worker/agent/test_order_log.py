"""Orders are executed once and in order, whatever the network repeats, loses or delays."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from wire.agents import AgentOrders, KillWorker, NumberedOrder
from worker.agent.order_log import OrderLog, OrderPosition


def message(epoch: int, first: int, last: int) -> AgentOrders:
    return AgentOrders(epoch, [NumberedOrder(n, KillWorker(f"{epoch}.{n}")) for n in range(first, last + 1)])


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(0, 4), st.booleans()), max_size=30),
)
def test_each_order_is_executed_once_and_in_order(steps: list[tuple[int, int, int, bool]]) -> None:
    orders, executed = OrderLog(OrderPosition()), list[tuple[int, int]]()
    for epoch, first, count, restarts in steps:
        for order in orders.take(message(epoch, first, first + count)):
            assert isinstance(order, KillWorker)
            number = order.worker.partition(".")
            executed.append((int(number[0]), int(number[2])))
        if restarts:  # the position is on disk
            stored = msgspec.json.encode(orders.position)
            orders = OrderLog(msgspec.json.decode(stored, type=OrderPosition))
    assert executed == sorted(set(executed))


def test_later_controller_replaces_the_earlier_one() -> None:
    orders = OrderLog(OrderPosition(5, 9))
    assert orders.take(message(4, 10, 11)) == []
    assert not orders.is_new_controller(message(5, 1, 1))
    assert orders.is_new_controller(message(6, 1, 1))
    assert len(orders.take(message(6, 1, 2))) == 2
    assert orders.position == OrderPosition(6, 2)
