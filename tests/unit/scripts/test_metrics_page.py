"""The list of metrics is what the code exports."""

from __future__ import annotations

import re

import pytest

from scripts.monitoring.catalog import families, series
from scripts.monitoring.page import PAGE, ROOT, with_tables

FAMILIES = families()
SOURCES = [*(ROOT / "loadbalancer" / "metrics").glob("*.py")]


def test_every_name_in_the_code_is_in_the_list() -> None:
    named = {name for file in SOURCES for name in re.findall(r'"(muster_[a-z_]+)"', file.read_text())}
    assert named
    assert named <= {name.removesuffix("_total") for name in FAMILIES}


def test_page_is_current() -> None:
    page = PAGE.read_text()
    assert with_tables(page, FAMILIES) == page, "run python -m scripts.monitoring.page"


@pytest.mark.parametrize("name", FAMILIES)
def test_names_follow_the_conventions(name: str) -> None:
    family = FAMILIES[name]
    assert name.endswith("_total") == (family.type == "counter")
    assert family.help.endswith(".") or name.startswith("process_")
    assert not any(name.endswith(unit) for unit in ("_ms", "_milliseconds", "_percent", "_kib", "_minutes"))
    if family.type == "histogram":
        assert name.endswith(("_seconds", "_prompts"))


def test_histograms_have_their_series() -> None:
    found = series(FAMILIES.values())
    assert found["muster_queue_wait_seconds_bucket"] == {"model", "le"}
    assert found["muster_queue_wait_seconds_count"] == {"model"}
    assert found["muster_tasks_total"] == {"model", "kind", "outcome"}
