"""The table of simulation results."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from controller.simulator.results import PolicyResult
from controller.simulator.table import hours_text, print_table

RESULT = PolicyResult("slo_work", "m", 10, 0, 0.995, 0.1, float("inf"), 2.0, 1.5, 2, 3, 0, 0.5, 1.25, float("inf"), 1.2)


@pytest.mark.parametrize("name", ["m", "[/bold]", "day[1].csv", "[red]"])
def test_names_like_markup_are_shown_as_text(name: str) -> None:
    output = io.StringIO()
    results = [replace(RESULT, policy=name, model=model) for model in (name, "other")]
    print_table(Console(width=200, file=output), f"title {name}", results, [f"note {name}"])
    text = output.getvalue()
    for piece in (f"title {name}", f"note {name}", "99.50 %", "never", "1.25", "none", "1.20 "):
        assert piece in text
    assert text.count(name) >= 5


@pytest.mark.parametrize(
    ("hours", "text"),
    [(0, "0.0"), (0.00123, "0.0012"), (0.5, "0.50"), (9.876, "9.88"), (10, "10.0"), (288.04, "288.0")],
)
def test_small_numbers_of_hours_have_more_digits(hours: float, text: str) -> None:
    assert hours_text(hours) == text


def test_title_may_be_wider_than_the_table() -> None:
    output = io.StringIO()
    title = "word " * 30
    print_table(Console(width=200, file=output), title, [RESULT], [])
    assert output.getvalue().startswith(title.strip())


def test_empty_columns_are_left_out() -> None:
    output = io.StringIO()
    plain = replace(RESULT, ratio=None, lower_bound_hours=None, best_hours=None)
    print_table(Console(width=200, file=output), "title", [plain, replace(plain, policy="hpa")], [])
    assert not {"bound", "best", "expired"} & set(output.getvalue().split())
    print_table(Console(width=200, file=output), "title", [plain, replace(RESULT, expired=7)], [])
    assert {"bound", "best", "expired", "7"} <= set(output.getvalue().split())
