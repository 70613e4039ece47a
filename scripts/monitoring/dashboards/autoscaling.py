"""The controller's decisions, and the starts of workers."""

from __future__ import annotations

from scripts.monitoring.dashboards.queries import MODEL, MODELS_VARIABLE, NONE_IS_GOOD, RATE
from scripts.monitoring.panels import Dashboard, Panel, Query, Row, number

DASHBOARD = Dashboard(
    "muster-autoscaling",
    "Muster / Autoscaling",
    "What the controller decides, and what comes of it.",
    [
        Row(
            "Now",
            [
                number("Desired", f"sum(muster_workers_desired{{{MODEL}}})", "Workers that the controller wants."),
                number("Ready", f"sum(muster_workers_ready{{{MODEL}}})", "Workers that serve."),
                number(
                    "Blocked models",
                    f"sum(muster_scaling_blocked{{{MODEL}}})",
                    "Models with workers that cannot be placed.",
                    thresholds=NONE_IS_GOOD,
                ),
                number(
                    "Cannot start",
                    f"sum(muster_model_cannot_start{{{MODEL}}})",
                    "Models whose workers fail to start.",
                    thresholds=NONE_IS_GOOD,
                ),
                number(
                    "Overrides",
                    f"sum(muster_scaling_override{{{MODEL}}})",
                    "Models with a number of workers set by hand.",
                ),
                number(
                    "Paused",
                    "max(muster_scaling_paused)",
                    "1 while scaling is paused.",
                    thresholds=(("green", 0), ("orange", 1)),
                ),
            ],
        ),
        Row(
            "Decisions",
            [
                Panel(
                    "Workers",
                    [
                        Query(f"sum by (model) (muster_workers_desired{{{MODEL}}})", "{{model}} desired"),
                        Query(f"sum by (model) (muster_workers_ready{{{MODEL}}})", "{{model}} ready"),
                        Query(f"sum by (model) (muster_workers_starting{{{MODEL}}})", "{{model}} starting"),
                        Query(f"sum by (model) (muster_workers_draining{{{MODEL}}})", "{{model}} draining"),
                    ],
                    "Desired workers, and those that are there.",
                    width=12,
                ),
                Panel(
                    "Queue and wait",
                    [
                        Query(f"sum by (model) (muster_queue_tasks{{{MODEL}}})", "{{model}} tasks"),
                        Query(f"max by (model) (muster_queue_oldest_seconds{{{MODEL}}})", "{{model}} oldest, s"),
                    ],
                    "What the decisions answer.",
                    width=12,
                ),
                Panel(
                    "Decisions",
                    [
                        Query(
                            f"sum by (model, direction) (rate(muster_decisions_total{{{MODEL}}}{RATE}))",
                            "{{model}} {{direction}}",
                        )
                    ],
                    "Per second. none: data was missing.",
                    "ops",
                ),
                Panel(
                    "Inputs of the last decision",
                    [Query(f"max by (model, input) (muster_decision_input{{{MODEL}}})", "{{model}} {{input}}")],
                    "As the policy reports them.",
                    kind="table",
                ),
                Panel(
                    "Blocked by",
                    [Query(f"sum by (model, kind) (muster_scaling_blocked_kind{{{MODEL}}})", "{{model}} {{kind}}")],
                    "Why workers cannot be placed.",
                ),
            ],
        ),
        Row(
            "Starts",
            [
                Panel(
                    "Cold start",
                    [
                        Query(
                            "histogram_quantile(0.9, sum by (le, model, standby) "
                            f"(rate(muster_cold_start_seconds_bucket{{{MODEL}}}[6h])))",
                            "{{model}} standby {{standby}}",
                        )
                    ],
                    "Nine of ten starts of the last six hours took no longer.",
                    "s",
                ),
                Panel(
                    "Phases of a start",
                    [
                        Query(
                            "sum by (model, standby, phase) "
                            f"(increase(muster_cold_start_phase_seconds_total{{{MODEL}}}[6h]))"
                            " / on (model, standby) group_left sum by (model, standby) "
                            f"(increase(muster_cold_start_seconds_count{{{MODEL}}}[6h]) > 0)",
                            "{{model}} {{phase}} standby {{standby}}",
                        )
                    ],
                    "Mean time of each phase over six hours.",
                    "s",
                    stacked=True,
                ),
                Panel(
                    "Crashes",
                    [
                        Query(
                            f"sum by (model, kind) (increase(muster_worker_crashes_total{{{MODEL}}}{RATE}))",
                            "{{model}} {{kind}}",
                        )
                    ],
                    "Crashed workers by kind.",
                ),
                Panel(
                    "Swaps",
                    [Query(f"sum(increase(muster_worker_swaps_total{RATE}))", "swaps")],
                    "Workers drained to make room for another model.",
                ),
                Panel(
                    "Standby",
                    [Query(f"sum by (model) (muster_workers_standby{{{MODEL}}})", "{{model}}")],
                    "Standby processes.",
                ),
                Panel(
                    "Unhealthy devices",
                    [Query("max by (device) (muster_device_unhealthy)", "{{device}}")],
                    "1 while no worker is started on the device.",
                ),
            ],
        ),
    ],
    [MODELS_VARIABLE],
)
