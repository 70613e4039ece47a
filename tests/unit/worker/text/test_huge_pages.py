"""Weights on huge pages are the same weights."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.support.text_models import tiny_model
from worker.engines.text.huge_pages import huge_pages, use_huge_pages
from worker.engines.text.packed_linears import pack_linears

_MIB = 1 << 20


@pytest.mark.parametrize(
    ("regions", "pages"),
    [
        ([], []),
        ([(0, 1)], [0]),
        ([(2 * _MIB, 2 * _MIB)], [2 * _MIB]),
        ([(3 * _MIB, 2 * _MIB)], [2 * _MIB, 4 * _MIB]),
        ([(9 * _MIB, 10), (8 * _MIB, 10), (1 * _MIB, 3 * _MIB)], [0, 2 * _MIB, 8 * _MIB]),
    ],
)
def test_pages_of_regions(regions: list[tuple[int, int]], pages: list[int]) -> None:
    assert huge_pages(regions) == pages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are asked for on Linux")
def test_moved_weights_compute_the_same() -> None:
    layer = torch.nn.Linear(1024, 1100)
    module = torch.nn.Sequential(layer)
    assert pack_linears(module) == 1
    hidden = torch.randn(1, 3, 1024)
    with torch.inference_mode():
        before = module(hidden)
        thread = use_huge_pages(module, least_bytes=4 * _MIB)
        assert thread is not None
        assert torch.equal(module(hidden), before)
        thread.join()
        assert torch.equal(module(hidden), before)


def test_small_models_stay_where_they_are() -> None:
    network = tiny_model()
    pack_linears(network)
    assert use_huge_pages(network) is None
