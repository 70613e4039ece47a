"""Blocks of the cache: none has two owners, none is lost, and every row goes on."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engines.text.blocks import BlockManager, block_hash
from worker.engines.text.step_planner import CachedText, StepPlanner

_BLOCKS, _SIZE, _BUDGET = 12, 4, 10


class PlannerMachine(RuleBasedStateMachine):
    """Rows of few tokens with common beginnings share 12 blocks of 4 tokens; any of them are stepped."""

    def __init__(self) -> None:
        super().__init__()
        self.planner = StepPlanner(_BLOCKS, _SIZE, _BUDGET, prefix_cache=True)
        self.rows: list[CachedText] = []
        self.ages = itertools.count()
        #: The token that was written last into each place of the cache.
        self.written: dict[tuple[int, int], tuple[int, ...]] = {}

    @rule(common=st.integers(0, 24), own=st.integers(1, 12), kind=st.integers(0, 1))
    def add(self, common: int, own: int, kind: int) -> None:
        age = next(self.ages)
        self.rows.append(CachedText([*[kind] * common, *[100 + age] * own], age))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.rows), min_size=1, unique=True))
        works = self.planner.plan(chosen)
        assert works, "at least one row goes on"
        assert sum(work.size for work in works if work.is_prefill) <= _BUDGET
        for work in works:
            assert work.start == work.text.computed
            self._write(work.text, work.start, work.size)
        self.planner.commit(works)
        for work in works:
            if work.completes and len(work.text.tokens) < _BLOCKS * _SIZE:
                work.text.tokens.append(1000 + work.text.age)

    def _write(self, text: CachedText, start: int, size: int) -> None:
        for at in range(start, start + size):
            place = text.blocks[at // _SIZE], at % _SIZE
            for other in self.rows:
                if other is not text and place[0] in other.blocks:
                    assert other.blocks.index(place[0]) * _SIZE + place[1] >= other.computed, "it would be overwritten"
            self.written[place] = tuple(text.tokens[: at + 1])

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(self.rows))
        self.rows.remove(text)
        self.planner.release(text)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(self.rows))
        self.rows.remove(text)
        freed = self.planner.discard(text)
        assert not any(block in other.blocks for other in self.rows for block in freed)

    @invariant()
    def blocks_are_counted(self) -> None:
        held = {block for text in self.rows for block in text.blocks}
        assert self.planner.manager.used == len(held)
        assert self.planner.manager.free == _BLOCKS - len(held)
        for text in self.rows:
            assert len(set(text.blocks)) == len(text.blocks)
            assert text.computed <= len(text.blocks) * _SIZE

    @invariant()
    def blocks_hold_what_their_rows_computed(self) -> None:
        for text in self.rows:
            for at in range(text.computed):
                assert self.written[text.blocks[at // _SIZE], at % _SIZE] == tuple(text.tokens[: at + 1])


PlannerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPlanner = PlannerMachine.TestCase


def run_to_end(planner: StepPlanner, rows: list[CachedText], tokens: int) -> int:
    """Step all rows until each has so many more tokens; return the number of steps."""
    wanted = {text: len(text.tokens) + tokens for text in rows}
    for steps in itertools.count(1):
        works = planner.plan(rows)
        planner.commit(works)
        for work in works:
            if work.completes:
                work.text.tokens.append(7)
        for text in [text for text in rows if len(text.tokens) >= wanted[text]]:
            planner.release(text)
            rows.remove(text)
        if not rows:
            return steps
    raise AssertionError


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_more_rows_than_blocks_come_to_their_end(prefix_cache: bool) -> None:
    planner = StepPlanner(_BLOCKS, _SIZE, _BUDGET, prefix_cache=prefix_cache)
    rows = [CachedText([age, *range(10 + age)], age) for age in range(8)]
    assert run_to_end(planner, rows, 20) < 400
    assert planner.manager.used == 0


def test_youngest_row_loses_its_blocks() -> None:
    planner = StepPlanner(4, _SIZE, 100, prefix_cache=False)
    rows = [CachedText(range(6), age) for age in range(2)]
    for _ in range(2):
        works = planner.plan(rows)
        planner.commit(works)
        for work in works:
            work.text.tokens.append(1)
    for text in rows:
        text.tokens.append(1)  # the ninth token: a third block
    works = planner.plan(rows)
    assert [work.text for work in works] == [rows[0]]
    assert rows[1].blocks == []


def test_block_that_was_unused_for_longest_goes_first() -> None:
    manager = BlockManager(3)
    hashes = [block_hash(b"", [number]) for number in range(3)]
    blocks = manager.allocate(3)
    assert blocks is not None
    for block, content in zip(blocks, hashes, strict=True):
        manager.register(block, content)
    for block in (blocks[1], blocks[0], blocks[2]):
        manager.release([block])
    assert manager.acquire([hashes[1]]) == [blocks[1]]
    manager.release([blocks[1]])
    manager.allocate(1)
    assert [manager.knows(content) for content in hashes] == [False, True, True]


def test_end_of_a_text_is_forgotten_before_its_beginning() -> None:
    manager = BlockManager(2)
    first = block_hash(b"", [1])
    second = block_hash(first, [1])
    blocks = manager.allocate(2) or []
    manager.register(blocks[0], first)
    manager.register(blocks[1], second)
    manager.release(blocks)
    manager.allocate(1)
    assert manager.knows(first)
    assert not manager.knows(second)


def test_too_many_blocks_are_not_allocated() -> None:
    manager = BlockManager(3)
    assert manager.allocate(4) is None
    assert manager.used == 0
    assert manager.allocate(3) is not None
    assert manager.allocate(1) is None


def test_hash_is_of_all_tokens_before() -> None:
    texts = [[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4]]
    hashes = {block_hash(block_hash(b"", text[:2]), text[2:]) for text in texts}
    assert len(hashes) == len(texts)
