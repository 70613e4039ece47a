"""What the benchmarks share: servers on loopback ports, and users that each send the next request after an answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(folder: Path, config: dict[str, Any], *options: str) -> Iterator[str]:
    """`python -m controller` with this configuration; gives its URL once every model has a ready worker."""
    folder.mkdir(parents=True, exist_ok=True)
    file, port = folder / "muster.yaml", free_port()
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "controller", "--config", str(file), "--port", str(port), *options]
    with (folder / "controller.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(folder)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        asyncio.run(_wait_ready(url, process, folder))
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


async def _wait_ready(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(1200):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended: {(folder / 'controller.log').read_text()[-2000:]}")
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise RuntimeError("the server was not ready after 120 s")


@dataclass
class Measured:
    """What a number of users saw in a stretch of time."""

    users: int
    seconds: float
    #: Of every request that was asked in the stretch, answered in it or later.
    latencies: list[float] = field(default_factory=list)
    #: How many were answered in the stretch.
    answered: int = 0
    errors: int = 0

    def summary(self) -> dict[str, float | int]:
        """Images per second answered in the stretch, and latency in milliseconds of those asked for in it.

        Leaving out the requests that are still waiting at the end would flatter whoever lets them wait longest.
        """
        cuts = sorted(self.latencies) or [float("nan")]
        return {
            "users": self.users,
            "images": self.answered,
            "images_per_s": self.answered / self.seconds,
            "p50_ms": 1000 * cuts[len(cuts) // 2],
            "p99_ms": 1000 * cuts[min(len(cuts) - 1, int(len(cuts) * 0.99))],
            "mean_ms": 1000 * statistics.fmean(cuts),
            "errors": self.errors,
        }


async def closed_loop(url: str, users: int, seconds: float, body: dict[str, Any], steps: tuple[int, int]) -> Measured:
    """So many users, each waiting for its answer before it asks again; step counts are uniform in `steps`."""
    measured = Measured(users, seconds)
    start = time.perf_counter()
    end = start + seconds

    async def user(number: int, session: aiohttp.ClientSession) -> None:
        chance = random.Random(number)
        while (asked := time.perf_counter()) < end:
            wanted = body | {"num_inference_steps": chance.randint(*steps), "seed": chance.randrange(2**31)}
            async with session.post(f"{url}/v1/images/generations", json=wanted) as answer:
                await answer.read()
            answered = time.perf_counter()
            if answer.status != 200:
                measured.errors += 1
                continue
            measured.latencies.append(answered - asked)
            measured.answered += answered <= end

    timeout = aiohttp.ClientTimeout(total=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(user(number, session) for number in range(users)))
    return measured


def machine() -> dict[str, str | int]:
    """Where the numbers come from."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "cpu_cores": psutil.cpu_count() or os.cpu_count() or 0,
        "processor": platform.machine(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
