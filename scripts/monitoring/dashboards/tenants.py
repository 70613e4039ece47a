"""The owners of API keys."""

from __future__ import annotations

from scripts.monitoring.dashboards.queries import MODEL, MODELS_VARIABLE, OWNER, RATE
from scripts.monitoring.panels import Dashboard, Panel, Query, Row, Variable

DASHBOARD = Dashboard(
    "muster-tenants",
    "Muster / Tenants",
    "What each API key uses. Without keys there is one owner, anonymous.",
    [
        Row(
            "Use",
            [
                Panel(
                    "Share of the work, last hour",
                    [
                        Query(
                            f"sum by (owner) (increase(muster_owner_work_seconds_total{{{OWNER}}}[1h]))"
                            f" / on () group_left sum(increase(muster_owner_work_seconds_total{{{MODEL}}}[1h]))",
                            "{{owner}}",
                        )
                    ],
                    "Seconds of work of ended tasks, relative to those of all keys.",
                    "percentunit",
                    "bargauge",
                    12,
                    9,
                    max=1,
                ),
                Panel(
                    "Work",
                    [Query(f"sum by (owner) (rate(muster_owner_work_seconds_total{{{OWNER}}}{RATE}))", "{{owner}}")],
                    "Seconds of work per second: so many workers with a batch of one would be busy.",
                    width=12,
                    height=9,
                    stacked=True,
                ),
                Panel(
                    "Finished tasks",
                    [
                        Query(
                            f'sum by (owner) (rate(muster_owner_tasks_total{{{OWNER},outcome="done"}}{RATE}))',
                            "{{owner}}",
                        )
                    ],
                    "Per second.",
                    "ops",
                ),
                Panel(
                    "Other ends",
                    [
                        Query(
                            'sum by (owner, outcome) (rate(muster_owner_tasks_total{outcome!="done",'
                            f"{OWNER}}}{RATE}))",
                            "{{owner}} {{outcome}}",
                        )
                    ],
                    "Tasks per second that failed, expired or were cancelled.",
                    "ops",
                ),
                Panel(
                    "Generated tokens",
                    [
                        Query(
                            f"sum by (owner) (rate(muster_owner_generated_tokens_total{{{OWNER}}}{RATE}))",
                            "{{owner}}",
                        )
                    ],
                    "Per second.",
                ),
            ],
        ),
        Row(
            "Refusals",
            [
                Panel(
                    "Refused requests by code",
                    [
                        Query(
                            f'sum by (code) (rate(muster_http_errors_total{{status=~"401|403|429|503"}}{RATE}))',
                            "{{code}}",
                        )
                    ],
                    "Of all keys, per second.",
                    "reqps",
                    width=12,
                    stacked=True,
                ),
                Panel(
                    "Refused before the application",
                    [Query(f"sum by (reason) (rate(muster_http_refusals_total{RATE}))", "{{reason}}")],
                    "Connections and requests that the HTTP server has refused, per second.",
                    "reqps",
                    width=12,
                    stacked=True,
                ),
            ],
        ),
    ],
    [MODELS_VARIABLE, Variable("owner", "muster_owner_tasks_total", "owner", MODEL)],
)
