"""How fast does a language model generate on this CPU: Muster's engines, the libraries alone, and other ways?

    python -m scripts.text_models FOLDER
    python -m scripts.bench.text --models FOLDER --vllm-python ENV/bin/python --openvino-python ENV/bin/python

All generate the same numbers of tokens for the same prompts, greedily, with one thread. Lengths are those of a recorded
trace, scaled down. In the closed loop, `--users` requests run at a time; in the open loop, requests arrive at random at
70 % of the first contender's closed rate. The last sweep changes the batch size of `muster`, and how many steps are
between two admissions; its texts are those of the closed loop. A library without an interpreter is left out. An engine
of Muster and the library in it run in one process, load by load in turn. Requirements:
`scripts/bench/requirements/text-*.txt`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.bench.text.contender_process import run_contenders
from scripts.bench.text.contenders import ENVIRONMENTS
from scripts.bench.text.report import admission_table, admissions, draw_figure, every, summarize, table
from scripts.bench.text.workload import read_lengths
from scripts.harness.load import machine

#: What shares a process. The manager of transformers has a thread that would disturb the others.
_GROUPS = (
    ("muster", "one at a time", "batches of 16", "batches of 32"),
    ("transformers cb",),
    ("transformers serve",),
    ("vllm", "muster + vllm"),
    ("openvino", "muster + openvino"),
)
_SWEEP_SHAPE = (32, 16)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench.text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True, help="folder that scripts.text_models has written")
    parser.add_argument("--vllm-python", type=Path)
    parser.add_argument("--openvino-python", type=Path)
    parser.add_argument("--only", help="contenders, separated by commas")
    parser.add_argument("--trace", type=Path, help="CSV with input_tokens and output_tokens")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--users", type=int, default=32, help="of the closed loop")
    parser.add_argument("--slots", type=int, default=32, help="texts in a batch at most")
    parser.add_argument("--prompt-scale", type=float, default=1 / 32, help="factor of the trace's prompts")
    parser.add_argument("--token-scale", type=float, default=1 / 8, help="factor of the trace's results")
    parser.add_argument("--max-prompt", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--loads", default="closed,open")
    parser.add_argument("--sweep", default="1,4,16,32", help="batch sizes; empty for none")
    parser.add_argument(
        "--places", default="1,4,16,32", help="batch sizes of the sweep over admissions; empty for none"
    )
    parser.add_argument(
        "--intervals", default="1,2,4,8,16,all", help="steps between two admissions; all: when no text is left"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser


def main() -> int:
    args, console = _parser().parse_args(), Console(width=150)
    wanted = args.only.split(",") if args.only else list(ENVIRONMENTS)
    if unknown := [name for name in wanted if name not in ENVIRONMENTS]:
        print(f"--only {unknown[0]}: allowed: {', '.join(ENVIRONMENTS)}", file=sys.stderr)
        return 2
    pythons = {"own": Path(sys.executable), "vllm": args.vllm_python, "openvino": args.openvino_python}
    plan: dict[str, Any] = {
        "models": {"folder": str(args.models / "smollm2"), "gguf": str(args.models / "smollm2.gguf")},
        "lengths": read_lengths(args.trace, args.requests),
        "sweep": _numbers(args.sweep),
        "sweep_shape": _SWEEP_SHAPE,
        "admissions": {"batches": _numbers(args.places), "intervals": _numbers(args.intervals)},
        "loads": [each for each in args.loads.split(",") if each],
        "rate": 1.0,
    }
    plan |= {key: getattr(args, key) for key in ("users", "slots", "rounds", "dtype")}
    plan |= {"scales": (args.prompt_scale, args.token_scale), "bounds": (args.max_prompt, args.max_tokens)}
    results: list[dict[str, Any]] = []
    report: dict[str, Any] = {}
    for group in _GROUPS:
        names = [name for name in group if name in wanted]
        python = pythons[ENVIRONMENTS[group[0]]]
        if not names or python is None:
            results += [{"contender": name, "reason": "no interpreter was given"} for name in names]
            continue
        with console.status(", ".join(names)):
            for result in run_contenders(python, plan | {"contenders": names}):
                results.append(result)
                _print(console, result)
        closed = [each for each in results if each.get("load") == "closed"]
        if closed:  # the first contender's rate is that of all
            plan["rate"] = 0.7 * closed[0]["requests_per_s"]
        summary = summarize(results)
        report |= {"command": _command(args), "machine": machine(), "summary": summary}
        report |= {"admissions": admissions(results), "results": results}
        if args.json:  # after each group: an interrupted run leaves what it has measured
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    console.print(table(summarize(results)), admission_table(admissions(results)))
    if args.plot:
        draw_figure(report, args.plot)
    return 0


def _numbers(text: str) -> list[int | None]:
    """Return the numbers in a list with commas, and None for `all`."""
    return [None if each == "all" else int(each) for each in text.split(",") if each]


def _command(args: argparse.Namespace) -> str:
    """Return the options, with names of files and folders in place of their paths."""
    given = {key.replace("_", "-"): value for key, value in vars(args).items() if value is not None}
    texts = {key: value.name if isinstance(value, Path) else str(value) for key, value in given.items()}
    return " ".join(f"--{key} {text}" for key, text in texts.items() if text)


def _print(console: Console, result: dict[str, Any]) -> None:
    if "reason" in result:
        console.print(f"{result['contender']}: {result['reason']}", style="yellow")
    elif "tokens_per_s" in result:
        load = result.get("load") or f"{result['places']} places, admission {every(result['interval'])}"
        console.print(f"{result['contender']}: {load}: {result['tokens_per_s']:.1f} tokens/s", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
