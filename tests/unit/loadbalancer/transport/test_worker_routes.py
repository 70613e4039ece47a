"""Names of workers: a worker on another machine is never taken for one of another key or of this machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.transport.worker_routes import MAX_NAME_CHARS, NameRefused, RemoteRoute, WorkerRoutes


def route(identity: str, key: str) -> RemoteRoute:
    return RemoteRoute(identity.encode(), key)


@pytest.mark.parametrize(
    ("key", "requested", "name"),
    [
        ("box", "box", "box"),
        ("box", "1", "box:1"),
        ("box", "box:1", "box:1"),
        ("box", "box-1", "box:box-1"),
        ("box", "m-3df3d3", "box:m-3df3d3"),
        ("box", "boxes", "box:boxes"),
        ("box", "", "box:"),
        ("box", ":", "box::"),
    ],
)
def test_name_begins_with_that_of_the_key(key: str, requested: str, name: str) -> None:
    assert WorkerRoutes(2).accept_remote(route("r", key), requested) == name


def test_same_key_may_reconnect() -> None:
    routes = WorkerRoutes(1)
    first, second = route("1", "box"), route("2", "box")
    routes.accept_remote(first, "w")
    assert routes.accept_remote(second, "w") == "box:w"
    assert routes.routes.get("box:w") == second
    assert (routes.remote_name(first), routes.remote_name(second)) == (None, "box:w")


def test_local_worker_is_never_replaced() -> None:
    routes = WorkerRoutes(8)
    for name in ("box", "box:w"):
        routes.accept_local(name)
        with pytest.raises(NameRefused, match="of the balancer's machine has the name"):
            routes.accept_remote(route("1", "box"), name)
        assert routes.routes.get(name) is None


def test_local_worker_takes_its_name_over() -> None:
    routes, remote = WorkerRoutes(8), route("1", "box")
    routes.accept_remote(remote, "box")
    routes.accept_local("box")
    assert routes.routes.get("box") is None
    assert routes.remote_name(remote) is None


def test_connection_with_another_key_is_unknown() -> None:
    routes = WorkerRoutes(8)
    routes.accept_remote(route("1", "box"), "box")
    assert routes.remote_name(route("1", "renamed")) is None


def test_names_of_a_key_are_bounded() -> None:
    routes = WorkerRoutes(2)
    for name in ("a", "b", "a", "b"):
        routes.accept_remote(route(name, "box"), name)
    with pytest.raises(NameRefused, match="2 workers, which is all"):
        routes.accept_remote(route("c", "box"), "c")
    assert routes.accept_remote(route("d", "other"), "c") == "other:c"
    routes.keep_only({"box:b", "other:c"})
    assert routes.routes.get("box:a") is None
    assert routes.accept_remote(route("c", "box"), "c") == "box:c"


def test_long_name_is_refused() -> None:
    with pytest.raises(NameRefused, match="more than 200 characters"):
        WorkerRoutes(2).accept_remote(route("1", "box"), "w" * (MAX_NAME_CHARS + 1))


NAMES = st.sampled_from(["a", "b", "a:1", "b:1", "1", "a:b", "b:a", ""])
KEYS = st.sampled_from(["a", "b"])
HELLO = st.tuples(st.sampled_from("12345"), KEYS, NAMES)
STEPS = st.lists(st.one_of(NAMES, HELLO, st.sets(NAMES)), max_size=40)


@given(STEPS)
def test_in_any_history_names_belong_to_their_owners(steps: list[str | tuple[str, str, str] | set[str]]) -> None:
    routes, local = WorkerRoutes(2), set[str]()
    for step in steps:
        match step:
            case str():
                routes.accept_local(step)
                local.add(step)
            case (identity, key, requested):
                connection = route(identity, key)
                try:
                    name = routes.accept_remote(connection, requested)
                except NameRefused:
                    continue
                assert name not in local
                assert routes.remote_name(connection) == name
            case _:
                routes.keep_only(step)
                local &= step
        remote = [
            name
            for name in ("a", "b", *(f"{k}:{n}" for k in "ab" for n in ("1", "a", "b", "")))
            if routes.routes.get(name)
        ]
        for name in remote:
            found = routes.routes.get(name)
            assert found is not None
            assert name.partition(":")[0] == found.key
            assert routes.remote_name(found) == name
        assert len({routes.routes.get(name) for name in remote}) == len(remote)
        assert not local & set(remote)
        for key in "ab":
            assert sum(name.partition(":")[0] == key for name in remote) <= 2
