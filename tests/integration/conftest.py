"""The order of the integration tests."""

from __future__ import annotations

import pytest

#: Files that take more than a minute each. One that began last would run alone at the end.
_LONGEST_FIRST = (
    "test_controller.py",
    "test_jobs_survive_restart.py",
    "test_chaos.py",
    "test_cli.py",
    "test_attack.py",
    "test_workers.py",
    "test_shared_pool.py",
    "test_digits.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files for pytest-xdist, which starts them in this order."""
    rank = {name: place for place, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
