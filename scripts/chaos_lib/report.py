"""The result of a chaos run as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from scripts.chaos_lib.outcomes import BALANCER_DIED, BALANCER_UNREACHABLE, EndState, count_outcomes
from scripts.chaos_lib.run import ChaosResult

#: Reasons of retries that follow from a balancer's death.
_DEATH_REASONS = (BALANCER_DIED, BALANCER_UNREACHABLE, "503 shutting_down", "shutting_down")


def summary(result: ChaosResult) -> dict[str, Any]:
    totals = count_outcomes(result.outcomes)
    done = sum(
        outcome.request.steps * len(outcome.images) for outcome in result.outcomes if outcome.end is EndState.COMPLETED
    )
    of_deaths = {reason: totals.retried[reason] for reason in _DEATH_REASONS if totals.retried[reason]}
    others = {reason: count for reason, count in totals.retried.items() if reason not in _DEATH_REASONS}
    return {
        "profile": result.profile.name,
        "seed": result.seed,
        "seconds": result.seconds,
        "faults": dict(result.faults),
        "balancers": result.balancers,
        "max workers": result.max_workers,
        "requests": totals.requests,
        "accepted": totals.accepted,
        "completed": totals.completed,
        "images": totals.images,
        "aborted by clients": totals.aborted,
        "failed": dict(totals.failed),
        "retried after a balancer's death": of_deaths,
        "retried because the server was busy": others,
        "steps of answered images": done,
        "steps by the workers": result.rows,
        "steps redone after crashes": result.events["steps_redone"],
        "requeued": result.events["requeued"],
        "jobs resumed": result.events["jobs_resumed"],
        "late or repeated messages dropped": result.events["stale"],
        "lost": totals.lost,
        "answered twice": totals.duplicates,
        "wrong images": totals.wrong,
        "slots leaked": len(result.leaked),
        "processes left": len(result.leftover),
        "crashes": len(result.crashes),
    }


#: Rows that must be 0.
MUST_BE_ZERO = ("lost", "answered twice", "wrong images", "slots leaked", "processes left", "crashes")


def to_json(result: ChaosResult) -> dict[str, Any]:
    """Return the table, the violations, the events and the planned requests."""
    planned = [
        f"{outcome.request.at_s:.3f} {outcome.request.id} {outcome.request.mode} {outcome.request.seed}"
        for outcome in result.outcomes
    ]
    found = {
        "violations": result.violations,
        "log": result.log,
        "events": dict(result.events),
        "requests planned": planned,
    }
    return summary(result) | found


def table(results: Sequence[ChaosResult]) -> Table:
    """Return a table with a column for each profile."""
    columns = [summary(result) for result in results]
    shown = Table(title=f"seed {results[0].seed}", show_lines=False)
    shown.add_column("")
    for result in results:
        shown.add_column(f"{result.profile.name}: {result.profile.title}")
    for name in columns[0]:
        if name in ("profile", "seed"):
            continue
        cells = [_cell(column[name]) for column in columns]
        bad = name in MUST_BE_ZERO and any(column[name] for column in columns)
        shown.add_row(name, *cells, style="bold red" if bad else "bold" if name in MUST_BE_ZERO else None)
    return shown


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        counts = Counter(value)
        return "\n".join(f"{count} {what}" for what, count in counts.most_common()) or "0"
    return f"{value:g}" if isinstance(value, float) else str(value)
