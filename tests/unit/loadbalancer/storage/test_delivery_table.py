"""Which webhooks are read: those of every owner and host, however many others are due before them."""

from __future__ import annotations

from collections import Counter

from loadbalancer.storage.repository import Repository
from tests.support.deliveries import many_due

NOW = 1e9


def test_few_are_read_in_the_order_of_their_times_the_owners_in_turn(repository: Repository) -> None:
    many_due(repository, [("a", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("", "")])
    assert [(each.owner, each.host, each.job) for each in repository.deliveries.due(NOW)] == [
        ("a", "x", "due0"),
        ("b", "x", "due3"),
        ("", "", "due4"),
        ("a", "x", "due1"),
        ("a", "y", "due2"),
    ]
    assert [each.job for each in repository.deliveries.due(11.5)] == ["due0", "due1"]
    assert repository.deliveries.due(9.0) == []


def test_late_owners_and_hosts_are_read_behind_many_others(repository: Repository) -> None:
    many_due(repository, [("hog", "x")] * 3000 + [("hog", "y"), ("bob", "x"), ("", "")])
    found = Counter((each.owner, each.host) for each in repository.deliveries.due(NOW))
    assert found == {("hog", "x"): 8, ("hog", "y"): 1, ("bob", "x"): 1, ("", ""): 1}


def test_an_owner_with_many_hosts_has_its_part_and_others_theirs(repository: Repository) -> None:
    many_due(repository, [("hog", f"h{number}") for number in range(3000)] + [("bob", "x")] * 20)
    due = repository.deliveries.due(NOW)
    assert Counter(each.owner for each in due) == {"hog": 64, "bob": 8}
    assert [each.job for each in due if each.owner == "hog"] == [f"due{number}" for number in range(64)], "the oldest"


def test_all_are_delivered_in_the_end(repository: Repository) -> None:
    places = [("hog", f"h{number}") for number in range(2000)] + [("hog", "x")] * 500 + [("bob", "y")] * 30
    many_due(repository, places)
    delivered: set[str] = set()
    while due := repository.deliveries.due(NOW):
        assert delivered.isdisjoint(each.job for each in due)
        delivered.update(each.job for each in due)
        for each in due:
            repository.deliveries.attempted(each.job, None, NOW)
    assert len(delivered) == len(places)


def test_pauses_of_one_owner_hide_nothing(repository: Repository) -> None:
    """Hosts before it in the index wait for their next attempts."""
    many_due(repository, [("a", f"h{number:04}") for number in range(2000)] + [("a", "z")])
    for number in range(2000):
        repository.deliveries.attempted(f"due{number}", 2 * NOW, None)
    assert [each.host for each in repository.deliveries.due(NOW)] == ["z"]
