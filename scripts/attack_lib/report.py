"""What the attacks did, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from scripts.attack_lib.attack import MIB, Outcome


def table(outcomes: Sequence[Outcome]) -> Table:
    """The table for people; broken bounds come last in their row."""
    made = Table("attack", "expected", "observed", "RSS", "/healthz", "log", "time")
    for outcome in outcomes:
        attack, bounds = outcome.attack, outcome.attack.bounds
        observed = Text(
            "; ".join(filter(None, [outcome.observed, *outcome.broken])), style="red" if outcome.broken else ""
        )
        made.add_row(
            Text(attack.name),
            Text(attack.expected),
            observed,
            f"+{outcome.rss_bytes / MIB:.1f} of {bounds.rss_bytes / MIB:.0f} MiB",
            f"{outcome.stall_s:.2f} of {bounds.stall_s:.1f} s",
            f"+{outcome.log_bytes} B",
            f"{outcome.wall_s:.1f} s",
        )
    return made


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The same as data."""
    return [
        {
            "attack": outcome.attack.name,
            "expected": outcome.attack.expected,
            "observed": outcome.observed,
            "broken": outcome.broken,
            "rss_bytes": outcome.rss_bytes,
            "rss_bytes_allowed": outcome.attack.bounds.rss_bytes,
            "stall_s": round(outcome.stall_s, 3),
            "stall_s_allowed": outcome.attack.bounds.stall_s,
            "log_bytes": outcome.log_bytes,
            "wall_s": round(outcome.wall_s, 1),
        }
        for outcome in outcomes
    ]
