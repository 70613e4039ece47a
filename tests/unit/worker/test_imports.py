"""Garbage collection around imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from worker.imports import without_garbage_collection


@pytest.fixture(autouse=True)
def _collection_as_before() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    (gc.enable if enabled else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_off_in_the_block_and_as_before_after_it(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    with without_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled() is enabled


def test_failed_import_leaves_collection_on() -> None:
    gc.enable()
    with pytest.raises(ImportError), without_garbage_collection():
        raise ImportError
    assert gc.isenabled()


def test_what_was_imported_is_in_no_later_search() -> None:
    with without_garbage_collection():
        imported = [[]]  # type: ignore[var-annotated]
    assert not any(found is imported for found in gc.get_objects())
