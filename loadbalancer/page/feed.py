"""Sends the page's data to everyone who looks: one message per second, encoded once for all."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

#: Pages that may look at the same time.
MAX_SUBSCRIBERS = 256
#: A page that has left so many messages unread is sent away: it connects again, and starts from the present.
_MAX_UNREAD = 30


class TooManySubscribers(Exception):
    """As many pages are connected as may be."""


class Subscription:
    """The messages that one page has not read yet."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._unread: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._is_open = True

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield the messages as they come, until the feed closes or the reader is too slow."""
        while True:
            while self._unread:
                yield self._unread.popleft()
            if not self._is_open:
                return
            self._changed.clear()
            await self._changed.wait()

    def put(self, message: bytes) -> None:
        if len(self._unread) >= _MAX_UNREAD:
            self.close()
            return
        self._unread.append(message)
        self._changed.set()

    def close(self) -> None:
        """End the stream. Idempotent."""
        self._is_open = False
        self._feed.remove(self)
        self._changed.set()


class Feed:
    """The connected pages. All methods are called in the event loop."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def __len__(self) -> int:
        return len(self._subscriptions)

    def subscribe(self) -> Subscription:
        """Raises `TooManySubscribers`."""
        if len(self) >= MAX_SUBSCRIBERS:
            raise TooManySubscribers
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def publish(self, message: bytes) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.put(message)

    def close(self) -> None:
        """End all streams."""
        for subscription in tuple(self._subscriptions):
            subscription.close()
