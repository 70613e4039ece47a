"""Three models of different kinds on two devices, live, while the load moves from one to the next.

    python -m scripts.bench.autoscaling.three_models --json results.json --plot plot.png

Serves `configs/examples/everything.yaml`: images, texts and a classifier, with `min_workers: 0` and standby workers. In
each phase one model is busy and the others are asked now and then. The table shows the share of requests that started
within the promised wait (`slo.max_wait_s`), as the server counted it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import yaml
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from scripts.harness.instance import Instance
from scripts.harness.load import machine
from scripts.harness.processes import ROOT

CONFIG = ROOT / "configs" / "examples" / "everything.yaml"
MODELS = ("digits", "tiny-text", "classifier")
#: Requests per second of the busy model, by model, and of the others.
_BUSY = {"digits": 1.0, "tiny-text": 3.0, "classifier": 20.0}
_QUIET = 0.15
_TIMEOUT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.autoscaling.three_models", description=__doc__)
    parser.add_argument("--phase-s", type=float, default=60.0, help="seconds of a phase (default 60)")
    parser.add_argument("--rounds", type=int, default=1, help="times that each model is busy (default 1)")
    parser.add_argument("--settle-s", type=float, default=40.0, help="time to load the standby workers (default 40)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--plot", type=Path, help="file for a plot of workers and requests")
    args = parser.parse_args()
    console = Console()
    instance = Instance(Path(tempfile.mkdtemp()), _config(), threads=None)
    try:
        instance.until(instance.is_ready, "a ready server")
        time.sleep(args.settle_s)
        with console.status("load"):
            failures = asyncio.run(_load(instance.url, args.phase_s, args.rounds, random.Random(args.seed)))
        rows = [_row(instance.url, model) for model in MODELS]
        span = int(3 * args.rounds * args.phase_s) + 10
        past = {model: _get(instance.url, f"/ui/history?model={model}&span={span}") for model in MODELS}
    finally:
        instance.end()
    table = Table(title=f"{len(MODELS)} models, 2 devices, phases of {args.phase_s:g} s")
    for name in ("model", "requests started", "in time", "promised wait, s", "most workers"):
        table.add_column(name, justify="right")
    for row in rows:
        row["most_workers"] = max(each or 0 for each in past[row["model"]]["columns"]["ready"])
        share = f"{100 * row['in_time']:.1f} %"
        table.add_row(
            row["model"], f"{row['started']:.0f}", share, f"{row['max_wait_s']:g}", f"{row['most_workers']:g}"
        )
    console.print(table)
    console.print(f"requests without an answer: {failures}")
    if args.json is not None:
        body = {"machine": machine(), "phase_s": args.phase_s, "results": rows, "failures": failures, "past": past}
        args.json.write_text(json.dumps(body) + "\n")
    if args.plot is not None:
        _plot(past, args.plot)


def _config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    model = config["models"]["classifier"]
    model["engine"] = str((CONFIG.parent / model["engine"].partition(":")[0]).resolve()) + ":DigitClassifier"
    return config


async def _load(url: str, phase_s: float, rounds: int, rng: random.Random) -> int:
    """Send the requests of all phases at their planned times; return how many had no answer."""
    planned = []
    for number in range(3 * rounds):
        busy = MODELS[number % 3]
        for model in MODELS:
            at, rate = number * phase_s, _BUSY[model] if model == busy else _QUIET
            while (at := at + rng.expovariate(rate)) < (number + 1) * phase_s:
                planned.append((at, model, rng.randrange(10)))
    started = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=httpx.Limits(max_connections=None)) as client:

        async def send(at: float, model: str, digit: int) -> bool:
            await asyncio.sleep(max(started + at - time.monotonic(), 0))
            try:
                return (await _request(client, model, digit)).is_success
            except httpx.HTTPError:
                return False

        answered = await asyncio.gather(*(send(*each) for each in planned))
    return len(answered) - sum(answered)


async def _request(client: httpx.AsyncClient, model: str, digit: int) -> httpx.Response:
    if model == "digits":
        body: dict[str, Any] = {"model": model, "prompt": f"a handwritten {digit}", "num_inference_steps": 20}
        return await client.post("/v1/images/generations", json=body)
    if model == "tiny-text":
        messages = [{"role": "user", "content": f"What is {digit} plus 4?"}]
        return await client.post("/v1/chat/completions", json={"model": model, "messages": messages, "temperature": 0})
    headers = {"content-type": "image/png"}
    return await client.post(f"/v1/models/{model}:predict", content=_picture(digit), headers=headers)


def _picture(digit: int) -> bytes:
    image, out = Image.new("RGB", (64, 64), "white"), io.BytesIO()
    ImageDraw.Draw(image).text((26, 22), str(digit), "black", font_size=24)
    image.save(out, "PNG")
    return out.getvalue()


def _get(url: str, path: str) -> Any:
    return httpx.get(f"{url}{path}", timeout=60).json()


def _row(url: str, model: str) -> dict[str, Any]:
    """Return the server's counts of the model."""
    counts = {}
    for line in httpx.get(f"{url}/metrics", timeout=60).text.splitlines():
        name, _, value = line.rpartition(" ")
        counts[name] = value
    started = float(counts[f'muster_tasks_started_total{{model="{model}"}}'])
    late = float(counts[f'muster_tasks_started_late_total{{model="{model}"}}'])
    [promised] = [each["max_wait_s"] for each in _get(url, "/ui/session")["models"] if each["name"] == model]
    return {"model": model, "started": started, "in_time": 1 - late / max(started, 1), "max_wait_s": promised}


def _plot(past: dict[str, Any], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(MODELS), 1, sharex=True, figsize=(9, 6), layout="constrained")
    begin = min(times["times"][0] for times in past.values())
    for axis, model in zip(axes, MODELS, strict=True):
        times = [each - begin for each in past[model]["times"]]
        columns = past[model]["columns"]
        axis.step(times, [each or 0 for each in columns["ready"]], where="post", label="ready workers")
        axis.set_ylim(0, 2.5)
        axis.set_ylabel(model)
        other = axis.twinx()
        other.plot(times, columns["arrived"], color="tab:orange", alpha=0.5, label="requests/s")
    axes[0].legend(loc="upper right")
    axes[-1].set_xlabel("seconds")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
