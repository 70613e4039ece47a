"""The use by API key: totals, the last hour, and bounded memory."""

from __future__ import annotations

from collections import Counter

import pytest

from loadbalancer.page.usage import MAX_OWNERS, OwnerTotals, UsageHistory, list_usage, totals_by_owner
from loadbalancer.scheduling.owner_usage import OwnerStatistics
from loadbalancer.scheduling.task_state import TaskState

HOUR = 3600.0


def statistics() -> OwnerStatistics:
    found = OwnerStatistics()
    for model, owner, outcome, work_s, tokens in (
        ("a", "ann", "done", 2.0, 10),
        ("b", "ann", "done", 1.0, 0),
        ("a", "ann", "expired", 0.0, 0),
        ("a", "bob", "failed", 0.5, 0),
        ("a", "bob", "cancelled", 0.0, 3),
    ):
        usage = found.of_model(model).get(owner) or found.add(model, owner)
        usage.ended[TaskState(outcome)] += 1
        usage.work_s += work_s
        usage.tokens += tokens
    return found


def test_totals_are_those_of_all_models() -> None:
    assert totals_by_owner(statistics().usage) == {
        "ann": OwnerTotals(done=2, failed=1, tokens=10, work_s=3.0),
        "bob": OwnerTotals(failed=1, cancelled=1, tokens=3, work_s=0.5),
    }


@pytest.mark.parametrize(
    ("minutes", "now", "work_s"),
    [
        ([], 0.0, 0.0),
        (range(30), 30 * 60.0, 0.0),  # the server is younger than an hour
        (range(60), HOUR, 0.0),
        (range(61), HOUR, 0.0),
        (range(200), 199 * 60.0, 139.0),
        ([0], 10 * HOUR, 0.0),  # the process has slept
    ],
)
def test_last_hour_begins_an_hour_ago(minutes: list[int], now: float, work_s: float) -> None:
    history = UsageHistory()
    for minute in minutes:
        assert history.is_due(minute * 60.0)
        history.add(minute * 60.0, {"ann": OwnerTotals(work_s=float(minute))})
        assert not history.is_due(minute * 60.0 + 59)
    assert history.hour_before(now).get("ann", OwnerTotals()).work_s == work_s


def test_owners_with_most_work_in_the_last_hour_are_first() -> None:
    totals = {"ann": OwnerTotals(done=5, work_s=9.0), "bob": OwnerTotals(done=3, work_s=4.0)}
    page = list_usage(totals, {"ann": OwnerTotals(done=5, work_s=9.0)}, [], None)
    assert [(row.owner, row.hour_work_s, row.hour_done, row.done) for row in page.owners] == [
        ("bob", 4.0, 3, 3),
        ("ann", 0.0, 0, 5),
    ]
    assert [row.owner for row in list_usage(totals, {}, [], "bob").owners] == ["bob"]
    assert list_usage({}, {}, [], "new").owners[0].done == 0


def test_list_is_bounded() -> None:
    page = list_usage({f"k{number}": OwnerTotals() for number in range(MAX_OWNERS + 7)}, {}, [], None)
    assert (len(page.owners), page.total, page.limit) == (MAX_OWNERS, MAX_OWNERS + 7, MAX_OWNERS)
    assert Counter(row.queued for row in page.owners) == {0: MAX_OWNERS}
