"""The overview: the promise, requests, tasks, the server."""

from __future__ import annotations

from scripts.monitoring.dashboards.queries import MODEL, MODELS_VARIABLE, PROMISE_COLORS, RATE, goodput
from scripts.monitoring.panels import Dashboard, Panel, Query, Row, number

DASHBOARD = Dashboard(
    "muster-overview",
    "Muster / Overview",
    "Is the promise kept, what comes in, what comes out, and what is wrong.",
    [
        Row(
            "Now",
            [
                number(
                    "Promise kept",
                    goodput(seconds="[1h]"),
                    "Share of the last hour's tasks that had their first step within slo.max_wait_s.",
                    "percentunit",
                    thresholds=PROMISE_COLORS,
                    max=1,
                ),
                number(
                    "Ready workers",
                    f'sum(muster_workers{{{MODEL},state="ready"}})',
                    "Workers that take tasks.",
                    thresholds=(("red", 0), ("green", 1)),
                ),
                number("Waiting tasks", f"sum(muster_queue_tasks{{{MODEL}}})", "Tasks that no worker has started."),
                number("Oldest waiting task", f"max(muster_queue_oldest_seconds{{{MODEL}}})", "Its age.", "s"),
                number(
                    "Refused",
                    f'sum(rate(muster_http_requests_total{{status=~"429|503"}}{RATE}))'
                    f" / sum(rate(muster_http_requests_total{RATE})) or vector(0)",
                    "Share of requests that were answered with 429 or 503.",
                    "percentunit",
                    thresholds=(("green", 0), ("orange", 0.01), ("red", 0.05)),
                ),
                number(
                    "Controller",
                    "min(muster_controller_up)",
                    "1 while a controller reports.",
                    thresholds=(("red", 0), ("green", 1)),
                ),
            ],
        ),
        Row(
            "Requests",
            [
                Panel(
                    "Requests by status",
                    [Query(f"sum by (status) (rate(muster_http_requests_total{RATE}))", "{{status}}")],
                    "Answered requests per second.",
                    "reqps",
                    stacked=True,
                ),
                Panel(
                    "Time of a response, p95",
                    [
                        Query(
                            "histogram_quantile(0.95, sum by (le, route) "
                            f"(rate(muster_http_request_duration_seconds_bucket{RATE})))",
                            "{{route}}",
                        )
                    ],
                    "From the arrival of a request to the end of its response, by route.",
                    "s",
                ),
                Panel(
                    "Errors by code",
                    [Query(f"sum by (code) (rate(muster_http_errors_total{RATE}))", "{{code}}")],
                    "Error responses per second.",
                    "reqps",
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Tasks",
            [
                Panel(
                    "Promise kept by model",
                    [Query(goodput("model"), "{{model}}")],
                    "Share of tasks that had their first step within slo.max_wait_s.",
                    "percentunit",
                    max=1,
                ),
                Panel(
                    "Ended tasks",
                    [
                        Query(
                            f"sum by (kind, outcome) (rate(muster_tasks_total{{{MODEL}}}{RATE}))",
                            "{{kind}} {{outcome}}",
                        )
                    ],
                    "Images, calls and texts per second by outcome.",
                    "ops",
                    stacked=True,
                ),
                Panel(
                    "Queue",
                    [Query(f"sum by (model) (muster_queue_tasks{{{MODEL}}})", "{{model}}")],
                    "Waiting tasks.",
                    stacked=True,
                ),
            ],
        ),
        Row(
            "The server",
            [
                Panel(
                    "Memory",
                    [Query("process_resident_memory_bytes", "{{instance}}")],
                    "Resident memory of the balancer.",
                    "bytes",
                ),
                Panel(
                    "Processor",
                    [Query(f"rate(process_cpu_seconds_total{RATE})", "{{instance}}")],
                    "Cores that the balancer uses.",
                ),
                Panel(
                    "Job storage",
                    [
                        Query("muster_jobs_storage_bytes", "in use {{instance}}"),
                        Query("muster_jobs_storage_limit_bytes", "limit {{instance}}"),
                    ],
                    "The database of jobs. It has a limit where jobs.max_file_bytes is set.",
                    "bytes",
                ),
            ],
        ),
    ],
    [MODELS_VARIABLE],
)
