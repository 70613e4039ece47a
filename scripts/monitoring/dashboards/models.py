"""Waiting, running and output by model."""

from __future__ import annotations

from scripts.monitoring.dashboards.queries import MODEL, MODELS_VARIABLE, PROMISE_COLORS, RATE, goodput, mean, quantiles
from scripts.monitoring.panels import Dashboard, Panel, Query, Row

DASHBOARD = Dashboard(
    "muster-models",
    "Muster / Models",
    "Waiting, running and output of each model.",
    [
        Row(
            "The promise",
            [
                Panel(
                    "Promise kept, last hour",
                    [Query(goodput("model", "[1h]"), "{{model}}")],
                    "Share of tasks that had their first step within slo.max_wait_s.",
                    "percentunit",
                    "stat",
                    12,
                    6,
                    thresholds=PROMISE_COLORS,
                    max=1,
                ),
                Panel(
                    "Promise",
                    [Query(f"max by (model) (muster_slo_max_wait_seconds{{{MODEL}}})", "{{model}}")],
                    "slo.max_wait_s.",
                    "s",
                    "stat",
                    12,
                    6,
                ),
                Panel(
                    "Wait for the first step",
                    quantiles("muster_queue_wait_seconds"),
                    "From the arrival of a task to its first step.",
                    "s",
                ),
                Panel(
                    "Time in the queue",
                    quantiles("muster_time_in_queue_seconds"),
                    "From the arrival of a task to its first assignment. What the wait is longer is the end of a step.",
                    "s",
                ),
                Panel(
                    "Waits",
                    [Query(f"sum by (le) (increase(muster_queue_wait_seconds_bucket{{{MODEL}}}{RATE}))", "{{le}}")],
                    "How many tasks waited how long.",
                    "s",
                    "heatmap",
                ),
            ],
        ),
        Row(
            "Running",
            [
                Panel(
                    "Run",
                    quantiles("muster_run_seconds"),
                    "From the first step of a task to its result.",
                    "s",
                ),
                Panel(
                    "Step",
                    quantiles("muster_time_per_step_seconds"),
                    "Mean time of a step of a finished image or call.",
                    "s",
                ),
                Panel(
                    "First preview",
                    quantiles("muster_time_to_first_preview_seconds"),
                    "From the arrival of a task to its first preview.",
                    "s",
                ),
                Panel(
                    "First token",
                    quantiles("muster_time_to_first_token_seconds"),
                    "From the arrival of a text to its first token.",
                    "s",
                ),
                Panel(
                    "Token",
                    quantiles("muster_time_per_output_token_seconds"),
                    "Mean time between two tokens of a finished text.",
                    "s",
                ),
                Panel(
                    "Batch",
                    [Query(mean("muster_worker_rows_total", "muster_worker_steps_total", MODEL, "model"), "{{model}}")],
                    "Mean number of tasks in a step.",
                ),
            ],
        ),
        Row(
            "Output",
            [
                Panel(
                    "Images and calls",
                    [
                        Query(
                            'sum by (model, kind) (rate(muster_tasks_total{outcome="done",kind!="text",'
                            f"{MODEL}}}{RATE}))",
                            "{{model}} {{kind}}",
                        )
                    ],
                    "Finished per second.",
                    "ops",
                ),
                Panel(
                    "Tokens",
                    [Query(f"sum by (model, kind) (rate(muster_tokens_total{{{MODEL}}}{RATE}))", "{{model}} {{kind}}")],
                    "Tokens per second: of prompts, of prompts found in the cache, and generated.",
                ),
                Panel(
                    "Arrivals and completions",
                    [
                        Query(f"sum by (model) (muster_arrivals_per_second{{{MODEL}}})", "{{model}} in"),
                        Query(f"sum by (model) (muster_completions_per_second{{{MODEL}}})", "{{model}} out"),
                    ],
                    "Tasks per second over the last minute.",
                    "ops",
                ),
                Panel(
                    "Failures",
                    [
                        Query(
                            f'sum by (model, outcome) (rate(muster_tasks_total{{{MODEL},outcome!="done"}}{RATE}))',
                            "{{model}} {{outcome}}",
                        )
                    ],
                    "Tasks per second that failed, expired or were cancelled.",
                    "ops",
                ),
                Panel(
                    "Refused tasks",
                    [
                        Query(
                            f"sum by (model, reason) (rate(muster_tasks_refused_total{{{MODEL}}}{RATE}))",
                            "{{model}} {{reason}}",
                        )
                    ],
                    "Tasks per second that were not queued.",
                    "ops",
                ),
                Panel(
                    "Moves and redone steps",
                    [
                        Query(f"sum by (cause) (rate(muster_task_moves_total{{{MODEL}}}{RATE}))", "{{cause}}"),
                        Query(f"sum(rate(muster_steps_redone_total{{{MODEL}}}{RATE}))", "redone steps"),
                    ],
                    "Tasks that left a worker before their end, and what had to be computed again.",
                    "ops",
                ),
            ],
        ),
    ],
    [MODELS_VARIABLE],
)
