"""What clients do not read is bounded for each API key."""

from __future__ import annotations

import pytest

from loadbalancer.generation.in_flight import MEMORY_FULL, ResponseMemory
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.schema.errors import TooBusy


def test_full_memory_of_a_key_refuses_its_new_requests_only() -> None:
    refusals = RefusalCounter()
    memory = ResponseMemory(100, refusals)
    memory.add("alice", 99)
    memory.check("alice")
    memory.add("alice", 50)  # it was under way
    with pytest.raises(TooBusy) as refused:
        memory.check("alice")
    assert (refused.value.status, refused.value.code) == (429, MEMORY_FULL)
    assert refused.value.headers == {"retry-after": "5"}
    memory.check("bob")
    memory.add("alice", -50)
    memory.check("alice")
    memory.add("alice", -99)
    assert (memory.held, refusals.counts[MEMORY_FULL]) == (0, 1)
