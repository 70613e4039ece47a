"""Names of workers and where their messages go. Pure.

Local workers are trusted with their names. A worker on another machine has a name that belongs to its key: the name of
the key itself, or `KEY:NAME`, so that it can never stand for a worker of another key or of this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

#: Maximum length of the name that a worker on another machine asks for.
MAX_NAME_CHARS = 200


class NameRefused(Exception):
    """A worker may not have this name. The text says why."""


class RemoteRoute(NamedTuple):
    """The connection of a worker on another machine: its identity on the TCP socket, and the name of its key."""

    identity: bytes
    key: str


class WorkerRoutes:
    """The connected workers by name. Each is either local or has a `RemoteRoute`."""

    def __init__(self, max_names_per_key: int) -> None:
        self._max_names_per_key = max_names_per_key
        #: The connection of each worker by name; None for local workers. Others only read it.
        self.routes: dict[str, RemoteRoute | None] = {}
        self._names: dict[bytes, str] = {}

    def __repr__(self) -> str:
        return f"<WorkerRoutes of {len(self.routes)} workers, {len(self._names)} remote>"

    def remote_name(self, route: RemoteRoute) -> str | None:
        """Return the worker that has been accepted on this connection with this key."""
        name = self._names.get(route.identity)
        return name if name is not None and self.routes.get(name) == route else None

    def accept_local(self, name: str) -> None:
        """Take in the Hello of a local worker. It takes the name over from a worker on another machine."""
        self.remove(name)
        self.routes[name] = None

    def accept_remote(self, route: RemoteRoute, requested: str) -> str:
        """Take in the Hello of a worker on another machine, and return its name.

        A worker of the same key and name is replaced: it has reconnected. Raises `NameRefused`.
        """
        if len(requested) > MAX_NAME_CHARS:
            raise NameRefused(f"its name has more than {MAX_NAME_CHARS} characters")
        is_complete = requested == route.key or requested.startswith(f"{route.key}:")
        name = requested if is_complete else f"{route.key}:{requested}"
        if name in self.routes:
            owner = self.routes[name]
            if owner is None or owner.key != route.key:
                other = "a worker of the balancer's machine" if owner is None else f"a worker with the key {owner.key}"
                raise NameRefused(f"{other} has the name {name}")
        elif self._count(route.key) >= self._max_names_per_key:
            raise NameRefused(f"its key has {self._max_names_per_key} workers, which is all that it may have")
        former = self._names.get(route.identity)
        if former is not None:
            self.remove(former)
        self.remove(name)
        self.routes[name] = route
        self._names[route.identity] = name
        return name

    def keep_only(self, names: Collection[str]) -> None:
        """Forget all other workers."""
        for name in self.routes.keys() - set(names):
            self.remove(name)

    def remove(self, name: str) -> None:
        """Forget the worker. Idempotent."""
        route = self.routes.pop(name, None)
        if route is not None:
            self._names.pop(route.identity, None)

    def _count(self, key: str) -> int:
        return Counter(route.key for route in self.routes.values() if route is not None)[key]
