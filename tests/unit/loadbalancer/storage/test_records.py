"""The form in which job specs are stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.storage.database import Database
from loadbalancer.storage.records import JobSpec, with_all_images, without_repetition
from tests.support.in_process_service import inputs
from wire.inputs import CallInputs, Part, TaskInputs

SEEDS = st.lists(st.integers(0, 2**32 - 1), max_size=10)


def spec(seeds: list[int], *, prompts: int = 1, prompt: str = "p") -> JobSpec:
    """Of so many different prompts, in turn."""
    images: list[TaskInputs] = [
        inputs(prompt=prompt + "x" * (item % prompts), seed=seed) for item, seed in enumerate(seeds)
    ]
    return JobSpec("/v1/images/generations", "m", images, 0, 1e12, "alice", 1.0)


@given(SEEDS, st.integers(1, 3))
def test_stored_spec_has_all_images_again(seeds: list[int], prompts: int) -> None:
    original = spec(seeds, prompts=prompts)
    stored = msgspec.json.decode(msgspec.json.encode(without_repetition(original)), type=JobSpec)
    assert with_all_images(stored) == original


def test_calls_are_stored_as_they_are() -> None:
    calls: list[TaskInputs] = [CallInputs((Part(),)), CallInputs((Part("image/png", "a"), Part("text/plain", "b")))]
    original = JobSpec("/v1/models/m:predict", "m", calls, 0, 1e12, "alice", 1.0)
    stored = msgspec.json.decode(msgspec.json.encode(without_repetition(original)), type=JobSpec)
    assert with_all_images(stored) == original
    assert (stored.images, stored.calls) == ([], calls)


@pytest.mark.parametrize("broken", [{"inputs": [], "seeds": [1, 2]}, {"inputs": [], "seeds": []}])
def test_spec_without_images_stays_one(broken: dict[str, list[int]]) -> None:
    assert not with_all_images(msgspec.structs.replace(spec([1]), **broken)).inputs


def _texts(spec_of_job: JobSpec) -> Iterator[int]:
    return (id(each.prompt) for each in spec_of_job.images)


async def test_prompt_of_many_images_is_stored_and_held_once(tmp_path: Path) -> None:
    database = Database(tmp_path / "jobs.sqlite3")
    try:
        large = spec(list(range(10)), prompt="p" * 10_000)
        record = await database.do(lambda repository: repository.add("j", large, [], None, 1.0))
        assert record.order == large
        assert len(set(_texts(record.order))) == 1
        assert await database.do(lambda repository: repository.size()) < 20_000
    finally:
        await database.close()
