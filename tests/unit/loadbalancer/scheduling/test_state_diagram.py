"""The page about the balancer shows the table that the balancer goes by."""

from __future__ import annotations

from loadbalancer.scheduling.task_state import TaskState
from scripts.generate.state_diagram import DESIGN, diagram


def test_the_state_diagram_is_current() -> None:
    assert diagram() in DESIGN.read_text(), "run: python -m scripts.generate.state_diagram"
    assert all(state.value in diagram() for state in TaskState)
