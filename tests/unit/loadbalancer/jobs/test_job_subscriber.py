"""Subscribers of a job: every image once and in order, and of each image's previews at most the newest."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.jobs.job_run import JobSubscriber
from loadbalancer.scheduling.task import TaskCompleted, TaskProgress
from loadbalancer.schema.errors import InternalError
from loadbalancer.storage.records import JobSpec, StoredImage
from wire.inputs import ImageInputs

IMAGES = 3
SPEC = JobSpec("/predict", "m", [ImageInputs("p", 8, 8, 9, 1.0, 0, "ddim")] * IMAGES, 0, 1.0, "o", 1.0)

#: An image (True) or a preview (False) of an item, or a reader that takes all (None).
Action = tuple[bool | None, int]


async def no_image(_: int) -> StoredImage | None:
    return None


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.integers(0, IMAGES - 1))))
def test_subscriber_gets_each_image_once_and_newest_previews(actions: list[Action]) -> None:
    async def scenario() -> None:
        subscriber = JobSubscriber(SPEC, lambda: iter(()), no_image, lambda _: None)
        images: list[str] = []
        completed: set[int] = set()
        for step, (is_image, item) in enumerate([*actions, (None, 0)]):
            if is_image is None:
                previews = [event for event in subscriber.events if isinstance(event, TaskProgress)]
                assert len({event.task for event in previews}) == len(previews)
                images += [event.task for event in subscriber.events if isinstance(event, TaskCompleted)]
                subscriber.events.clear()
            elif is_image:
                completed.add(item)
                subscriber.add_items([item])
            else:
                subscriber.add_preview(item, TaskProgress("t", step, 9, b"p"))
                assert item in completed or subscriber.events[-1] == TaskProgress(str(item), step, 9, b"p")
        assert sorted(images) == sorted(map(str, completed))

    asyncio.run(scenario())


async def test_subscriber_keeps_the_first_end() -> None:
    subscriber = JobSubscriber(SPEC, lambda: iter(()), no_image, lambda _: None)
    error = InternalError("first")
    subscriber.end(error)
    subscriber.end(None)
    assert subscriber.ended.done()
    assert subscriber.changed.is_set()
    assert subscriber.failure is error
