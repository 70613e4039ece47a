"""Fixtures of the tests of what is stored."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadbalancer.storage.repository import Repository
from tests.support.repositories import memory


@pytest.fixture
def repository() -> Iterator[Repository]:
    """Empty tables."""
    with memory() as tables:
        yield tables
