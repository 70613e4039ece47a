"""Which batch size is best for continuous batching of texts, and what do batches of whole requests reach?

    python -m scripts.bench.experiments.text_batches
    python -m scripts.bench.experiments.text_batches --models FOLDER      # that scripts.text_models has written

Published (Machine Learning Mastery, May 2026): best at 16 to 32, and 61.8 s of a demonstration became 9.5 s. Here the
model is real and runs on one CPU core, behind the HTTP server, the balancer and a worker. So many users as the batch
has places send prompts without a pause. Texts have 8 to 128 tokens. One server admits a text at any step; the other
runs each batch to its end. Both measure in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
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
_LENGTHS = tuple({"max_tokens": count, "min_tokens": count} for count in range(8, 129, 8))
_PROMPT = "Write a few sentences about a harbour town in winter."
_SECONDS = {TINY: 6.0, SMOLLM2: 9.0}
_WARM_UP_S = 1.5
#: Counters arrive with the heartbeats.
_LIFE = {"heartbeat_s": 0.2, "lost_after_s": 30}


def measure(models: Mapping[str, str], console: Console) -> dict[str, Any]:
    """Return a row for each model, batch size and way to batch."""
    rows = [row for name, path in models.items() for row in _rows(name, path, console)]
    best = {name: _best(rows, name) for name in models}
    gains = {name: _gain(rows, name) for name in models}
    summary = "; ".join(
        f"{name}: best batch {best[name]}, up to {gains[name]:.1f} times the tokens/s of whole requests"
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
                console.print(f"{name}, batch {batch}, {mode}: {row['tokens_per_s']:.0f} tokens/s", highlight=False)
                yield row


async def _level(server: Server, name: str, users: int) -> dict[str, Any]:
    body = {"model": name, "messages": [{"role": "user", "content": _PROMPT}]}
    request = RequestTemplate(body, choices=_LENGTHS, path="/v1/chat/completions")
    seconds = _SECONDS.get(name, _SECONDS[SMOLLM2])
    load = asyncio.create_task(closed_loop(server.base_url, users, seconds, request, warm_up_s=_WARM_UP_S))
    await asyncio.sleep(_WARM_UP_S)
    before = await asyncio.to_thread(_counters, server)
    await asyncio.sleep(seconds)
    after = await asyncio.to_thread(_counters, server)
    result = (await load).summary()
    tokens, time_s, cpu_s = (late - early for late, early in zip(after, before, strict=True))
    return {
        "tokens_per_s": tokens / time_s,
        "tokens_per_cpu_s": tokens / max(cpu_s, 1e-9),
        "mean_ms": result["mean_ms"],
        "p95_ms": result["p95_ms"],
        "errors": result["errors"],
    }


def _counters(server: Server) -> tuple[float, float, float]:
    """Return the generated tokens, the balancer's time of the count, and the worker's CPU seconds."""
    snapshot = server.snapshot()
    [worker] = snapshot.workers
    assert worker.text is not None
    cpu = psutil.Process(worker.pid).cpu_times()
    return worker.text.generated_tokens, snapshot.time - worker.last_message_age_s, cpu.user + cpu.system


def _series(rows: list[dict[str, Any]], model: str, mode: str) -> dict[int, float]:
    return {row["batch"]: row["tokens_per_s"] for row in rows if (row["model"], row["mode"]) == (model, mode)}


def _best(rows: list[dict[str, Any]], model: str) -> int:
    """Return the smallest batch that reaches 95 % of the most tokens per second."""
    series = _series(rows, model, "continuous")
    return min(batch for batch, rate in series.items() if rate >= 0.95 * max(series.values()))


def _gain(rows: list[dict[str, Any]], model: str) -> float:
    continuous, whole = (_series(rows, model, mode) for mode in _MODES)
    return max(continuous[batch] / whole[batch] for batch in whole)


def draw(axes: Any, result: Mapping[str, Any]) -> None:
    """Draw tokens per second by batch size; a panel for each model."""
    for axis, model in zip(axes, dict.fromkeys(row["model"] for row in result["rows"]), strict=False):
        for number, mode in enumerate(_MODES):
            series = _series(result["rows"], model, mode)
            axis.plot(list(series), list(series.values()), "o-", color=f"C{number}", label=mode)
        axis.set_xscale("log", base=2)
        axis.axvspan(*result["published"]["best_batch"], color="grey", alpha=0.2, label="published: best")
        axis.set(title=model, xlabel="texts in the batch", ylabel="tokens/s", ylim=(0, None))


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
