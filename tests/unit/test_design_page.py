"""The page about the balancer shows the table that the balancer goes by."""

from __future__ import annotations

from write_states import DESIGN, diagram

from loadbalancer.task import State


def test_the_state_diagram_is_current() -> None:
    assert diagram() in DESIGN.read_text(), "run: python scripts/write_states.py"
    assert all(state.value in diagram() for state in State)
