"""The messages to connected pages, and the end of those who do not read."""

from __future__ import annotations

import asyncio

import pytest

from loadbalancer.page.feed import MAX_SUBSCRIBERS, Feed, TooManySubscribers


async def read(feed: Feed, count: int) -> list[bytes]:
    subscription, found = feed.subscribe(), []
    async for message in subscription.messages():
        found.append(message)
        if len(found) == count:
            subscription.close()
    return found


async def test_every_page_gets_every_message() -> None:
    feed = Feed()
    readers = [asyncio.create_task(read(feed, 2)) for _ in range(3)]
    await asyncio.sleep(0)
    feed.publish(b"one")
    feed.publish(b"two")
    assert await asyncio.gather(*readers) == [[b"one", b"two"]] * 3
    assert len(feed) == 0


async def test_page_that_does_not_read_is_sent_away() -> None:
    feed = Feed()
    slow = feed.subscribe()
    for number in range(1000):
        feed.publish(b"%d" % number)
    assert len(feed) == 0
    assert len([message async for message in slow.messages()]) == 30, "what was kept is bounded"


async def test_number_of_pages_is_bounded() -> None:
    feed = Feed()
    subscriptions = [feed.subscribe() for _ in range(MAX_SUBSCRIBERS)]
    with pytest.raises(TooManySubscribers):
        feed.subscribe()
    subscriptions[0].close()
    feed.subscribe()
    feed.close()
    assert len(feed) == 0
