#!/usr/bin/env python3
"""Train the built-in text model from scratch on one CPU core, in minutes.

    python -m scripts.train_text --out worker/builtin/tiny-text

Everything follows from the seed: questions, tokenizer, weights. Evaluate the result with
`python -m scripts.text_model.evaluation`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from scripts.text_model.tokenizer import train_tokenizer
from scripts.text_model.training import new_config, save, train

STEPS = 1200


def load(folder: Path | None) -> LlamaForCausalLM | None:
    """Return the model in float32; None if there is no folder."""
    return None if folder is None else LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("worker/builtin/tiny-text"), help="folder of the model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--hidden", type=int, default=192, help="width, a multiple of 64")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--initial", type=Path, metavar="FOLDER", help="a model whose training goes on")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--float32", action="store_true", help="for processors without bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.monotonic()
    # The tokenizer of a model that exists is its own: another seed would change it.
    tokenizer = (
        train_tokenizer(args.seed)
        if args.initial is None
        else Tokenizer.from_file(str(args.initial / "tokenizer.json"))
    )
    config = new_config(tokenizer, args.hidden, args.layers)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("training"), *columns, TextColumn("loss {task.fields[loss]:.4f}")) as progress:
        bar = progress.add_task("training", total=args.steps, loss=float("nan"))

        def on_step(step: int, loss: float) -> None:
            progress.update(bar, completed=step + 1, loss=loss)
            if not progress.console.is_terminal and (step + 1) % 50 == 0:
                print(f"step {step + 1}: loss {loss:.4f}", flush=True)

        model = train(
            tokenizer,
            config,
            args.steps,
            args.seed,
            on_step,
            bfloat16=not args.float32,
            initial=load(args.initial),
            rate=args.rate,
        )
    save(model, tokenizer, args.out)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{args.out}: {model.num_parameters()} weights, {size / 2**20:.1f} MiB, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
