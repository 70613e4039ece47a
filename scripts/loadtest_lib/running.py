"""Runs Locust through a plan, with progress in the terminal, and returns what was measured."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from scripts.loadtest_lib.html_report import duration
from scripts.loadtest_lib.locust_process import start_locust
from scripts.loadtest_lib.plan import LoadPlan
from scripts.loadtest_lib.records import LoadSecond, RecordReader
from scripts.loadtest_lib.report_data import quantiles

_POLL_S = 0.5
#: Seconds between two lines where the output is no terminal.
_LINE_S = 10.0
#: Seconds that the numbers in the terminal are of.
_WINDOW = 5
_END_S = 30.0
#: It runs, has ended, or has ended with failed requests.
_GOOD_STATUSES = (None, 0, 1)


class LocustFailed(Exception):
    """Locust ended without a measurement; the text is the end of its output."""


def run_locust(command: Sequence[str], plan: LoadPlan, console: Console, *, has_end: bool) -> RecordReader:
    """Run the command to its end, or to Ctrl-C. Raises `LocustFailed` if it breaks down, or records nothing."""
    reader = RecordReader(plan.folder)
    process = start_locust(command, plan)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _show_progress(process, reader, plan, console, has_end=has_end)
        is_broken = process.poll() not in _GOOD_STATUSES
    finally:
        _end(process)
    reader.poll()
    if is_broken or not reader.seconds:
        raise LocustFailed((plan.folder / "locust.log").read_text(errors="replace")[-2000:].strip())
    return reader


def _show_progress(
    process: subprocess.Popen[bytes], reader: RecordReader, plan: LoadPlan, console: Console, *, has_end: bool
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    printed_at = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=plan.shape.seconds if has_end else None)
        while process.poll() is None:
            time.sleep(_POLL_S)
            reader.poll()
            if not reader.seconds:
                continue
            line = progress_line(reader)
            progress.update(bar, description=line, completed=max(reader.seconds) - min(reader.seconds))
            if not console.is_terminal and time.monotonic() - printed_at >= _LINE_S:
                printed_at = time.monotonic()
                console.print(line, highlight=False)


def progress_line(reader: RecordReader) -> str:
    """Return the last seconds in words."""
    last, recent = max(reader.seconds), LoadSecond()
    for second in range(last - _WINDOW + 1, last + 1):
        if second in reader.seconds:
            recent.merge(reader.seconds[second])
    now = reader.seconds[last]
    latencies = [recent.durations[name] for name, _ in recent.outcomes if name in recent.durations]
    merged = latencies[0] if latencies else LoadSecond().durations[""]
    for each in latencies[1:]:
        merged.merge(each)
    errors = sum(each.count("error") for each in reader.seconds.values())
    rate = (recent.count("ok") + recent.count("refused")) / _WINDOW
    return (
        f"{now.users} users, {now.in_flight} in flight, {rate:.1f} requests/s, "
        f"p95 {duration(quantiles(merged)['p95_ms'])}, {errors} errors"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let Locust end by itself after its own signal, and kill it if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
    if process.poll() is None:
        process.kill()
    process.wait()


def write_picture(plan: LoadPlan) -> None:
    """Write the source image of edits, in the size of the first model that takes one."""
    from PIL import Image

    size = next((model.size for model in plan.models if model.edits), "64x64")
    width, height = map(int, size.split("x"))
    picture = Image.effect_mandelbrot((width, height), (-2.0, -1.5, 1.0, 1.5), 60).convert("RGB")
    picture.save(plan.folder / "source.png")
