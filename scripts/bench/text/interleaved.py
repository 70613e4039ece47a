"""Muster's own engine beside transformers: its manager for continuous batching, its server, and `generate`.

    python -m scripts.text_models FOLDER
    python -m scripts.bench.text.interleaved --models FOLDER --json results.json

All answer the same chats greedily on one thread, in a process each. The rounds take turns, in random order, and only
one process computes at a time. So what else the machine does meets all of them. Ratios are of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.text.contenders import make_contender
from scripts.bench.text.driving import drive
from scripts.bench.text.workload import chat_requests
from scripts.harness.load import machine

_ROOT = Path(__file__).resolve().parents[3]
_OWN = "muster"
_OWN_AS_SHIPPED, _MANAGER_AS_SHIPPED = "muster prefix cache", "transformers cb as shipped"
_CONTENDERS = (_OWN, _OWN_AS_SHIPPED, "transformers cb", _MANAGER_AS_SHIPPED, "transformers serve", "one at a time")
#: `generate` answers only so many chats: each takes as long as the others.
_CHATS_ONE_BY_ONE = 2
_RATES = ("tokens_per_cpu_s", "tokens_per_s")


class ContenderProcess:
    """A contender in a process of its own, which waits for its turn."""

    def __init__(self, name: str, folder: Path, dtype: str, chats: int, tokens: int) -> None:
        own = min(chats, _CHATS_ONE_BY_ONE) if name == "one at a time" else chats
        plan = {"name": name, "folder": str(folder), "dtype": dtype, "chats": own, "tokens": tokens}
        env = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", __spec__.name, "--contender", json.dumps(plan)]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()
        self.measure()  # the first round loads libraries and reserves memory

    def measure(self) -> dict[str, Any]:
        """Run a round and return its figures."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                return result
        raise RuntimeError("a contender ended; its error is above")


def run_contender(plan: dict[str, Any]) -> None:
    """Run a round for each line of the standard input."""
    from transformers import AutoTokenizer

    requests = chat_requests(AutoTokenizer.from_pretrained(plan["folder"]), plan["chats"], plan["tokens"])
    contender = make_contender(plan["name"], {"folder": plan["folder"], "gguf": ""}, plan["dtype"], plan["chats"])
    contender.load()
    print("RESULT {}", flush=True)
    for _ in sys.stdin:
        print("RESULT " + json.dumps(drive(contender, requests, len(requests))), flush=True)
    os._exit(0)  # a thread of a library may go on for ever


def summarize(rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians and spreads by precision and contender, and of `muster` relative to each in the same round.

    Prompts that begin alike share work on both sides of the comparison as shipped, and on no side of the others. Each
    round has `dtype`, and `results`: the figures by contender.
    """
    summary = []
    for dtype in dict.fromkeys(each["dtype"] for each in rounds):
        own = [each["results"] for each in rounds if each["dtype"] == dtype]
        for name in own[0]:
            row: dict[str, Any] = {"dtype": dtype, "contender": name, "rounds": len(own)}
            base = _OWN_AS_SHIPPED if name == _MANAGER_AS_SHIPPED and _OWN_AS_SHIPPED in own[0] else _OWN
            for rate in _RATES:
                row[rate] = _spread([each[name][rate] for each in own])
                row[f"muster_{rate}_ratio"] = _spread([each[base][rate] / each[name][rate] for each in own])
            summary.append(row)
    return summary


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _table(summary: Sequence[dict[str, Any]]) -> Table:
    table = Table("", "", "tokens per CPU s", "muster is", "tokens/s", "muster is")
    for row in summary:
        cells = [row["dtype"], row["contender"]]
        for rate in _RATES:
            cells.append("{median:.1f} ({min:.1f} to {max:.1f})".format(**row[rate]))
            cells.append("{median:.2f}x ({min:.2f} to {max:.2f})".format(**row[f"muster_{rate}_ratio"]))
        table.add_row(*cells)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.text.interleaved",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, help="folder that scripts.text_models has written")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--chats", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--only", default=",".join(_CONTENDERS), help="contenders besides muster, separated by commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--contender", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender is not None:
        run_contender(args.contender)
    if args.models is None:
        parser.error("--models is missing")
    console, order, rounds = Console(width=130), random.Random(1), list[dict[str, Any]]()
    names = list(dict.fromkeys([_OWN, *args.only.split(",")]))
    if unknown := [name for name in names if name not in _CONTENDERS]:
        parser.error(f"--only {unknown[0]}: allowed: {', '.join(_CONTENDERS)}")
    for dtype in args.dtypes.split(","):
        with contextlib.ExitStack() as stack:
            processes = {}
            for name in names:
                processes[name] = ContenderProcess(name, args.models / "smollm2", dtype, args.chats, args.tokens)
                stack.callback(processes[name].close)
                console.print(f"{dtype}: {name} is loaded")
            for number in range(args.rounds):
                results = {name: processes[name].measure() for name in order.sample(names, len(names))}
                rounds.append({"dtype": dtype, "results": {name: results[name] for name in names}})
                rates = ", ".join(f"{name} {results[name]['tokens_per_cpu_s']:.1f}" for name in names)
                console.print(f"{dtype}, round {number + 1} of {args.rounds}, tokens per CPU second: {rates}")
    summary = summarize(rounds)
    console.print(_table(summary))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "summary": summary, "rounds": rounds}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
