"""Which batch size is best for continuous batching of texts, and what do batches of whole requests reach?

    python -m scripts.bench.experiments.text_batches
    python -m scripts.bench.experiments.text_batches --models FOLDER      # that scripts.text_models has written

Published (Machine Learning Mastery, May 2026): best at 16 to 32, and 61.8 s of a demonstration became 9.5 s. Here the
model is real and runs on one CPU core, behind the HTTP server, the balancer and a worker. So many users as the batch
has places send prompts without a pause. Texts have 8 to 128 tokens, those of SmolLM2 4 to 32. One server admits a text
at any step; the other runs each batch to its end. Both measure in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from scripts.bench.experiments.experiment import add_outputs, write_result
from scripts.harness.balancer import Server, running
from scripts.harness.load import RequestTemplate, closed_loop

BATCHES = (1, 4, 8, 16, 32, 64)
TINY, SMOLLM2 = "tiny-text", "smollm2"
_MODES: dict[str, dict[str, Any]] = {
    "continuous": {"mode": "step"},
    "whole requests": {"mode": "grouped", "window_s": 0.05},
}
#: Tokens of the texts, the fewest and the most.
_LENGTHS = {TINY: (8, 128), SMOLLM2: (4, 32)}
_PROMPT = "Write a few sentences about a harbour town in winter."
#: CPU seconds of the worker before the count, in which it reads the first prompts, and of the count. The count is
#: longer than a batch of whole requests. On a busy machine both end after so many times their seconds.
_TIMES = {TINY: (1.5, 6.0), SMOLLM2: (6.0, 15.0)}
_MAX_SLOWDOWN = 3.0
_POLL_S = 0.1
#: Counters arrive with the heartbeats.
_LIFE = {"heartbeat_s": 0.2, "lost_after_s": 30}


def measure(models: Mapping[str, str], console: Console) -> dict[str, Any]:
    """Return a row for each model, batch size and way to batch."""
    rows = [row for name, path in models.items() for row in _rows(name, path, console)]
    best = {name: _best(rows, name) for name in models}
    gains = {name: _gain(rows, name) for name in models}
    summary = "; ".join(
        f"{name}: best batch {best[name]}, up to {gains[name]:.1f} times the tokens per CPU second of whole requests"
        for name in models
    )
    published = {"best_batch": [16, 32], "demonstration_s": {"static": 61.8, "continuous": 9.5}}
    return {"summary": summary, "published": published, "best_batch": best, "gain": gains, "rows": rows}


def _rows(name: str, path: str, console: Console) -> Iterator[dict[str, Any]]:
    """Start a server for each way to batch, and measure them in turn. As many users as a batch has places fill it."""
    with tempfile.TemporaryDirectory(prefix="muster-experiment-") as place, contextlib.ExitStack() as stack:
        servers = {}
        for number, (mode, batching) in enumerate(_MODES.items()):
            model = {"engine": "text", "path": path, "max_batch_size": max(BATCHES), "batching": batching}
            context = running(Path(place) / str(number), {name: model}, life=_LIFE, queue={"deadline_slack": None})
            servers[mode] = stack.enter_context(context)
        for batch in BATCHES:
            for mode, server in servers.items():
                row: dict[str, Any] = {"model": name, "batch": batch, "mode": mode} | asyncio.run(
                    _level(server, name, batch)
                )
                console.print(
                    f"{name}, batch {batch}, {mode}: {row['tokens_per_cpu_s']:.0f} tokens per CPU s", highlight=False
                )
                yield row


async def _level(server: Server, name: str, users: int) -> dict[str, Any]:
    body = {"model": name, "messages": [{"role": "user", "content": _PROMPT}]}
    lengths = range(*_LENGTHS[name], 2)
    choices = tuple({"max_tokens": count, "min_tokens": count} for count in lengths)
    request = RequestTemplate(body, choices=choices, path="/v1/chat/completions")
    warm_up_s, seconds = _TIMES[name]
    load = asyncio.create_task(closed_loop(server.base_url, users, 1000 * seconds, request))
    await _use_cpu(server, warm_up_s)
    before = await asyncio.to_thread(_counters, server)
    await _use_cpu(server, seconds)
    after = await asyncio.to_thread(_counters, server)
    load.cancel()  # the rest of the texts would take longer than the measurement
    await asyncio.wait([load])
    tokens, time_s, cpu_s = (late - early for late, early in zip(after, before, strict=True))
    return {
        "tokens_per_s": tokens / time_s,
        "tokens_per_cpu_s": tokens / max(cpu_s, 1e-9),
        #: Mean pause between two tokens of one text.
        "token_interval_ms": 1000 * users * time_s / max(tokens, 1),
    }


async def _use_cpu(server: Server, seconds: float) -> None:
    """Return when the worker has used so much CPU time, or after the longest time."""
    [worker] = server.workers.values()
    process, end = psutil.Process(worker.pid), time.monotonic() + _MAX_SLOWDOWN * seconds
    wanted = sum(process.cpu_times()[:2]) + seconds
    while sum(process.cpu_times()[:2]) < wanted and time.monotonic() < end:
        await asyncio.sleep(_POLL_S)


def _counters(server: Server) -> tuple[float, float, float]:
    """Return the generated tokens, the balancer's time of the count, and the worker's CPU seconds."""
    snapshot = server.snapshot()
    [worker] = snapshot.workers
    assert worker.text is not None
    cpu = psutil.Process(worker.pid).cpu_times()
    return worker.text.generated_tokens, snapshot.time - worker.last_message_age_s, cpu.user + cpu.system


def _series(rows: list[dict[str, Any]], model: str, mode: str) -> dict[int, float]:
    """Return the tokens per CPU second of the worker by batch: other programs on the machine change it less."""
    return {row["batch"]: row["tokens_per_cpu_s"] for row in rows if (row["model"], row["mode"]) == (model, mode)}


def _best(rows: list[dict[str, Any]], model: str) -> int:
    """Return the smallest batch that reaches 95 % of the highest rate."""
    series = _series(rows, model, "continuous")
    return min(batch for batch, rate in series.items() if rate >= 0.95 * max(series.values()))


def _gain(rows: list[dict[str, Any]], model: str) -> float:
    continuous, whole = (_series(rows, model, mode) for mode in _MODES)
    return max(continuous[batch] / whole[batch] for batch in whole)


def draw(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw tokens per CPU second by batch size; a panel for each model."""
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    for axis in axes[len(models) :]:
        axis.set_visible(False)
    for axis, model in zip(axes, models, strict=False):
        for number, mode in enumerate(_MODES):
            series = _series(result["rows"], model, mode)
            axis.plot(list(series), list(series.values()), "o-", color=f"C{number}", label=mode)
        axis.set_xscale("log", base=2)
        axis.axvspan(*result["published"]["best_batch"], color="grey", alpha=0.2, label="published: best")
        axis.set(title=model, xlabel="texts in the batch", ylabel="tokens per CPU second", ylim=(0, None))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="written by scripts.text_models: SmolLM2 as well")
    add_outputs(parser, "text_batches")
    args = parser.parse_args()
    models = {TINY: f"builtin:{TINY}"} | ({SMOLLM2: str(args.models / SMOLLM2)} if args.models else {})
    console = Console()
    write_result("text_batches", args, draw, console, lambda: measure(models, console))
    return 0


if __name__ == "__main__":
    sys.exit(main())
