"""Workers and their devices."""

from __future__ import annotations

from scripts.monitoring.dashboards.queries import MODEL, MODELS_VARIABLE, NONE_IS_GOOD, RATE, WORKER, mean
from scripts.monitoring.panels import Dashboard, Panel, Query, Row, Variable

DASHBOARD = Dashboard(
    "muster-workers",
    "Muster / Workers and GPUs",
    "What each worker and device does.",
    [
        Row(
            "Devices",
            [
                Panel(
                    "Busy by device",
                    [
                        Query(
                            f"sum by (device) (rate(muster_worker_busy_seconds_total{{{WORKER}}}{RATE}))",
                            "{{device}}",
                        )
                    ],
                    "Share of the time in which the device computes a step. Two workers on one device may exceed 1.",
                    "percentunit",
                    width=12,
                ),
                Panel(
                    "Memory by device",
                    [Query(f"max by (device) (muster_worker_memory_bytes{{{WORKER}}})", "{{device}}")],
                    "Memory in use on the device.",
                    "bytes",
                    width=12,
                ),
            ],
        ),
        Row(
            "Workers",
            [
                Panel(
                    "Workers by state",
                    [Query(f"sum by (state) (muster_workers{{{MODEL}}})", "{{state}}")],
                    "silent: no heartbeat. stuck: heartbeats, but no step.",
                    stacked=True,
                ),
                Panel(
                    "Slots in use",
                    [
                        Query(
                            f"sum by (worker) (muster_worker_tasks{{{WORKER}}})"
                            f" / sum by (worker) (muster_worker_slots{{{WORKER}}})",
                            "{{worker}}",
                        )
                    ],
                    "Tasks of the worker, relative to what it takes.",
                    "percentunit",
                ),
                Panel(
                    "Batch",
                    [
                        Query(
                            mean("muster_worker_rows_total", "muster_worker_steps_total", WORKER, "worker"),
                            "{{worker}}",
                        )
                    ],
                    "Mean number of tasks in a step.",
                ),
                Panel(
                    "Step",
                    [
                        Query(
                            mean("muster_worker_busy_seconds_total", "muster_worker_steps_total", WORKER, "worker"),
                            "{{worker}}",
                        )
                    ],
                    "Mean time of a step.",
                    "s",
                ),
                Panel(
                    "Out of memory",
                    [
                        Query(
                            f"sum by (worker) (increase(muster_worker_out_of_memory_total{{{WORKER}}}{RATE}))",
                            "{{worker}}",
                        )
                    ],
                    "Batches that did not fit.",
                    thresholds=NONE_IS_GOOD,
                ),
                Panel(
                    "Age of the last message",
                    [Query(f"max by (worker) (muster_worker_last_message_age_seconds{{{WORKER}}})", "{{worker}}")],
                    "A worker sends a heartbeat every second.",
                    "s",
                ),
            ],
        ),
        Row(
            "Language models",
            [
                Panel(
                    "Cache in use",
                    [
                        Query(
                            f"sum by (worker) (muster_worker_cache_used_blocks{{{WORKER}}})"
                            f" / sum by (worker) (muster_worker_cache_blocks{{{WORKER}}})",
                            "{{worker}}",
                        )
                    ],
                    "Blocks of the key-value cache that running texts use.",
                    "percentunit",
                    max=1,
                ),
                Panel(
                    "Tokens",
                    [
                        Query(
                            f"sum by (worker) (rate(muster_worker_prompt_tokens_total{{{WORKER}}}{RATE}))",
                            "{{worker}} prompt",
                        ),
                        Query(
                            f"sum by (worker) (rate(muster_worker_generated_tokens_total{{{WORKER}}}{RATE}))",
                            "{{worker}} generated",
                        ),
                        Query(
                            f"sum by (worker) (rate(muster_worker_recomputed_tokens_total{{{WORKER}}}{RATE}))",
                            "{{worker}} again",
                        ),
                    ],
                    "Tokens per second.",
                ),
                Panel(
                    "Prompts found in the cache",
                    [
                        Query(
                            mean(
                                "muster_worker_cached_tokens_total",
                                "muster_worker_prompt_tokens_total",
                                WORKER,
                                "worker",
                            ),
                            "{{worker}}",
                        )
                    ],
                    "Share of the tokens of prompts.",
                    "percentunit",
                    max=1,
                ),
                Panel(
                    "Prompts in a step",
                    [
                        Query(
                            f"sum by (le) (increase(muster_worker_prefill_batch_prompts_bucket{{{WORKER}}}{RATE}))",
                            "{{le}}",
                        )
                    ],
                    "Steps by the number of prompts that shared them. Steps without prompts are left out.",
                    kind="heatmap",
                    width=12,
                ),
                Panel(
                    "Mean prompts in a step",
                    [
                        Query(
                            mean(
                                "muster_worker_prefill_batch_prompts_sum",
                                "muster_worker_prefill_batch_prompts_count",
                                WORKER,
                                "model",
                            ),
                            "{{model}}",
                        )
                    ],
                    "Mean number of prompts in a step that computes any, by model.",
                    width=12,
                ),
            ],
        ),
    ],
    [MODELS_VARIABLE, Variable("worker", "muster_worker_slots", "worker", MODEL)],
)
