"""The table of simulation results."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from controller.simulator.results import PolicyResult
from controller.simulator.table import print_table

RESULT = PolicyResult("slo_work", "m", 10, 0, 0.995, 0.1, float("inf"), 2.0, 1.5, 2, 3, 0, 0.5, 1.25, float("inf"), 1.2)


@pytest.mark.parametrize("name", ["m", "[/bold]", "day[1].csv", "[red]"])
def test_names_like_markup_are_shown_as_text(name: str) -> None:
    output = io.StringIO()
    results = [replace(RESULT, policy=name, model=model) for model in (name, "other")]
    print_table(Console(width=200, file=output), f"title {name}", results, [f"note {name}"])
    text = output.getvalue()
    for piece in (f"title {name}", f"note {name}", "99.50 %", "never", "1.25", "none", "1.2 "):
        assert piece in text
    assert text.count(name) >= 5


def test_empty_columns_are_left_out() -> None:
    output = io.StringIO()
    plain = replace(RESULT, ratio=None, lower_bound_hours=None, best_hours=None)
    print_table(Console(width=200, file=output), "title", [plain, replace(plain, policy="hpa")], [])
    assert not {"bound", "best", "expired"} & set(output.getvalue().split())
    print_table(Console(width=200, file=output), "title", [plain, replace(RESULT, expired=7)], [])
    assert {"bound", "best", "expired", "7"} <= set(output.getvalue().split())
