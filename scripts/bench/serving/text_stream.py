"""How many tokens per second does the balancer carry, as streams of chats?

    python -m scripts.bench.serving.text_stream --json scripts/bench/results/text_stream_sim.json

A balancer, a worker with the simulated text engine, and clients that read streams, each in a process of its own. The
engine generates a word for each stream in every step. Where the processes do not keep up, an event has more than one
token. The balancer's processor time per token says what one core carries. Tokens per second depend on the cores that
the other processes have as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

from scripts.bench.serving.workloads import quantile
from scripts.harness.balancer import running
from scripts.harness.load import machine

T0_S = 0.012
#: Before the counts start.
_WARM_UP_S = 2.0
_MAX_TOKENS = 100_000


class StreamClient(asyncio.Protocol):
    """Reads one stream, and begins the next one at its end."""

    def __init__(self, port: int, number: int) -> None:
        body = {
            "model": "words",
            "messages": [{"role": "user", "content": "hello"}],
            "seed": number,
            "max_tokens": _MAX_TOKENS,
            "stream": True,
        }
        content = msgspec.json.encode(body)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        self._request = f"{head}content-length: {len(content)}\r\n\r\n".encode() + content
        self.tokens = 0
        self.events = 0
        #: Seconds between what arrived, which is a token if the balancer keeps up.
        self.gaps: list[float] = []
        self._last = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._last:
            self.gaps.append(now - self._last)
        self._last = now
        events = data.count(b"data: ")
        self.events += events
        self.tokens += data.count(b" ") - events  # a word ends with a space, and nothing else in the events has one


async def measure(port: int, pid: int, streams: int, seconds: float) -> dict[str, Any]:
    """Return the throughput, the balancer's processor time and the gaps of so many streams, after a warm-up."""
    loop, balancer = asyncio.get_running_loop(), psutil.Process(pid)
    opened = [
        await loop.create_connection(lambda number=number: StreamClient(port, number), "127.0.0.1", port)  # type: ignore[misc]
        for number in range(streams)
    ]
    clients = [client for _, client in opened]
    await asyncio.sleep(_WARM_UP_S)
    for client in clients:
        client.gaps.clear()
    tokens, events = sum(client.tokens for client in clients), sum(client.events for client in clients)
    cpu, start = sum(balancer.cpu_times()[:2]), time.perf_counter()
    await asyncio.sleep(seconds)
    took = time.perf_counter() - start
    cpu = sum(balancer.cpu_times()[:2]) - cpu
    tokens, events = (
        sum(client.tokens for client in clients) - tokens,
        sum(client.events for client in clients) - events,
    )
    gaps = [gap for client in clients for gap in client.gaps]
    for transport, _ in opened:
        transport.close()
    return {
        "streams": streams,
        "seconds": took,
        "tokens_per_s": tokens / took,
        "events_per_token": events / tokens,
        "balancer_us_per_token": 1e6 * cpu / tokens,
        "balancer_cores": cpu / took,
        "tokens_per_s_of_a_core": tokens / cpu,
        "gap_p50_ms": 1000 * quantile(gaps, 0.5),
        "gap_p99_ms": 1000 * quantile(gaps, 0.99),
    }


def run(streams: int, seconds: float, t0_s: float) -> dict[str, Any]:
    sim = {"task": "text", "t0_s": t0_s, "t1_s": 0.0, "load_s": 0.0}
    text = {"limits": {"max_tokens": _MAX_TOKENS}}
    models = {"words": {"engine": "sim", "max_batch_size": 256, "sim": sim, "text": text}}
    with (
        tempfile.TemporaryDirectory(prefix="muster-text-stream-") as folder,
        running(Path(folder) / "data", models, queue={"deadline_slack": None}) as server,
    ):
        return asyncio.run(measure(server.port, server.balancer.pid, streams, seconds))


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="streams of chats from a simulated engine")
    columns = (
        "streams",
        "tokens/s",
        "events/token",
        "us/token of the balancer",
        "tokens/s of a core",
        "gap p50 ms",
        "gap p99 ms",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["streams"]),
            f"{row['tokens_per_s']:,.0f}",
            f"{row['events_per_token']:.2f}",
            f"{row['balancer_us_per_token']:.1f}",
            f"{row['tokens_per_s_of_a_core']:,.0f}",
            f"{row['gap_p50_ms']:.1f}",
            f"{row['gap_p99_ms']:.1f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="64,256", help="numbers of streams, comma-separated")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one measurement")
    parser.add_argument("--t0-s", type=float, default=T0_S, help="seconds of a step of the simulated engine")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    rows = [run(int(streams), args.seconds, args.t0_s) for streams in args.streams.split(",")]
    show(rows)
    if args.json is not None:
        command = "python -m scripts.bench.serving.text_stream"
        result = {"command": command, "engine": "simulated", "machine": machine(), "results": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
