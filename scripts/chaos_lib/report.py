"""What came of it: a table for people, a tree for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from scripts.chaos_lib.outcomes import BALANCER_AWAY, BALANCER_DIED, End, add_up
from scripts.chaos_lib.run import Verdict

#: What a client does again because of a balancer's death, and by what it learns of it.
_OF_DEATHS = (BALANCER_DIED, BALANCER_AWAY, "503 shutting_down", "shutting_down")


def summary(verdict: Verdict) -> dict[str, Any]:
    """Every number of the table."""
    totals = add_up(verdict.stories)
    done = sum(story.ask.steps * len(story.images) for story in verdict.stories if story.end is End.COMPLETED)
    of_deaths = {reason: totals.retried[reason] for reason in _OF_DEATHS if totals.retried[reason]}
    others = {reason: count for reason, count in totals.retried.items() if reason not in _OF_DEATHS}
    return {
        "profile": verdict.profile.name,
        "seed": verdict.seed,
        "seconds": verdict.seconds,
        "troubles": dict(verdict.troubles),
        "balancers": verdict.balancers,
        "most workers at once": verdict.most_workers,
        "asked": totals.asked,
        "accepted": totals.accepted,
        "completed": totals.completed,
        "images": totals.images,
        "left by their clients": totals.left,
        "failed": dict(totals.failed),
        "retried because of a balancer's death": of_deaths,
        "retried because the server was busy": others,
        "steps of answered images": done,
        "steps by the workers": verdict.rows,
        "steps redone after crashes": verdict.events["steps_redone"],
        "handed back or recovered": verdict.events["requeued"],
        "jobs taken up again": verdict.events["jobs_resumed"],
        "late or repeated messages dropped": verdict.events["stale"],
        "lost": totals.lost,
        "answered twice": totals.twice,
        "wrong images": totals.wrong,
        "slots leaked": len(verdict.leaked),
        "processes left": len(verdict.left),
        "fallen": len(verdict.fallen),
    }


#: Rows that must be 0.
MUST_BE_ZERO = ("lost", "answered twice", "wrong images", "slots leaked", "processes left", "fallen")


def as_tree(verdict: Verdict) -> dict[str, Any]:
    """For a file: the table, and what lies under it."""
    planned = [f"{story.ask.at_s:.3f} {story.ask.id} {story.ask.way} {story.ask.seed}" for story in verdict.stories]
    told = {"faults": verdict.faults, "log": verdict.log, "events": dict(verdict.events), "asks": planned}
    return summary(verdict) | told


def table(verdicts: Sequence[Verdict]) -> Table:
    """A column for each profile."""
    columns = [summary(verdict) for verdict in verdicts]
    shown = Table(title=f"seed {verdicts[0].seed}", show_lines=False)
    shown.add_column("")
    for verdict in verdicts:
        shown.add_column(f"{verdict.profile.name}: {verdict.profile.title}")
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
