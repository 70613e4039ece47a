"""Evaluate the built-in "digits" model: share of correct digits and colours.

    python -m scripts.digits.evaluate --json worker/builtin/digits/EVALUATION.json --grid digits.png

All images come from `DiffusionEngine`. Exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from rich.table import Table

from configs.model_sections import Defaults
from configs.model_settings import Model
from scripts.digits.classifier import Array, DigitClassifier, DigitLabel, own_accuracy
from scripts.digits.data import PAIRS, SIZE, WORDS
from wire.inputs import ImageInputs
from worker.engine import EngineRequest, TaskError
from worker.engines.diffusion.engine import DiffusionEngine

SAMPLERS = ("ddim", "euler", "dpmpp_2m")
STEPS = 20
GUIDANCE = 3.0
DIGITS_TARGET = 0.97
COLOURS_TARGET = 0.90
#: Target for each pair of ink and paper: a good mean must not hide a pair that always fails.
PAIR_TARGET = 0.80
BATCH = 40
PLAIN = "a handwritten {d}"
CAPTIONS = (PLAIN, *(f"{'an' if ink == 'orange' else 'a'} {ink} {{d}} on {paper} paper" for ink, paper in PAIRS))


class EvaluationPrompt(NamedTuple):
    """A prompt with its correct label."""

    prompt: str
    right: DigitLabel
    seed: int
    sampler: str = "ddim"


def generate(engine: DiffusionEngine, prompts: Sequence[EvaluationPrompt], what: str) -> Array:
    """Generate images `(N, 64, 64, 3)` in [0, 1], `BATCH` at a time."""
    images: list[Array] = []
    for start in track(range(0, len(prompts), BATCH), f"{what:20}"):
        images += _batch(engine, prompts[start : start + BATCH])
    return np.stack(images)


def _batch(engine: DiffusionEngine, prompts: Sequence[EvaluationPrompt]) -> Iterator[Array]:
    inputs = [ImageInputs(a.prompt, SIZE, SIZE, STEPS, GUIDANCE, a.seed, a.sampler) for a in prompts]
    rows = []
    for row in engine.admit([EngineRequest(one) for one in inputs]):
        if isinstance(row, TaskError):
            raise row
        rows.append(row)
    while unfinished := [row for row in rows if row.step < row.steps]:
        engine.step(unfinished)
    for row in rows:
        yield np.asarray(Image.open(io.BytesIO(engine.render(row)().data)), np.float32) / np.float32(255)


def plain(sampler: str, seeds: int) -> list[EvaluationPrompt]:
    """Return prompts without colours for every digit, which mean white on black."""
    return [
        EvaluationPrompt(PLAIN.format(d=WORDS[digit]), DigitLabel(digit, "white", "black"), 100 * digit + seed, sampler)
        for digit in range(10)
        for seed in range(seeds)
    ]


def coloured(seeds: int) -> list[EvaluationPrompt]:
    """Return prompts for every pair of ink and paper, with rotating digits."""
    return [
        EvaluationPrompt(caption.format(d=WORDS[n % 10]), DigitLabel(n % 10, ink, paper), 7000 + n)
        for n, ((ink, paper), caption) in enumerate(list(zip(PAIRS, CAPTIONS[1:], strict=True)) * seeds)
    ]


def evaluate(engine: DiffusionEngine, seeds: int) -> dict[str, Any]:
    """Return the shares of correct results, in total and by group."""
    classifier = DigitClassifier()
    report: dict[str, Any] = {"steps": STEPS, "guidance_scale": GUIDANCE, "judge_on_true_pictures": own_accuracy()}
    report["digits"] = {}
    for sampler in SAMPLERS:
        asked = plain(sampler, seeds)
        labels = classifier.classify(generate(engine, asked, f"digits, {sampler}"))
        right = [a.right.digit == v.digit for a, v in zip(asked, labels, strict=True)]
        report["digits"][sampler] = _shares([WORDS[a.right.digit] for a in asked], right)
    asked = coloured(seeds)
    labels = classifier.classify(generate(engine, asked, "colours, ddim"))
    both = list(zip(asked, labels, strict=True))
    pairs = [f"{a.right.ink} on {a.right.paper}" for a in asked]
    report["ink"] = _shares(pairs, [a.right.ink == v.ink for a, v in both])
    report["paper"] = _shares(pairs, [a.right.paper == v.paper for a, v in both])
    report["ink_and_paper"] = _shares(pairs, [(a.right.ink, a.right.paper) == (v.ink, v.paper) for a, v in both])
    report["coloured_digits"] = _shares(pairs, [a.right.digit == v.digit for a, v in both])
    return report


def _shares(groups: Sequence[str], right: Sequence[bool]) -> dict[str, Any]:
    apart: dict[str, list[bool]] = {}
    for group, answer in zip(groups, right, strict=True):
        apart.setdefault(group, []).append(answer)
    return {"all": float(np.mean(right)), "of": len(right), "apart": {g: float(np.mean(a)) for g, a in apart.items()}}


def missed(report: dict[str, Any]) -> list[str]:
    """Return the missed targets."""
    digits = [f"digits, {s}" for s, shares in report["digits"].items() if shares["all"] < DIGITS_TARGET]
    colours = [what for what in ("ink", "paper", "ink_and_paper") if report[what]["all"] < COLOURS_TARGET]
    pairs = [pair for pair, share in report["ink_and_paper"]["apart"].items() if share < PAIR_TARGET]
    return digits + colours + pairs


def table(report: dict[str, Any]) -> Table:
    """Return the table for the terminal."""
    shown = Table("asked", "right", "of", "weakest", title=f"{STEPS} steps, guidance {GUIDANCE:g}")
    rows = [(f"digits, {sampler}", shares) for sampler, shares in report["digits"].items()]
    rows += [(what.replace("_", " "), report[what]) for what in ("ink", "paper", "ink_and_paper", "coloured_digits")]
    for name, shares in rows:
        weakest = sorted(shares["apart"].items(), key=lambda item: item[1])[:3]
        weak_groups = ", ".join(f"{group} {share:.0%}" for group, share in weakest if share < 1)
        shown.add_row(name, f"{shares['all']:.1%}", str(shares["of"]), weak_groups)
    shown.add_row(
        "classifier alone", f"{report['judge_on_true_pictures']:.1%}", "", "true images not in its training set"
    )
    return shown


def grid(engine: DiffusionEngine, scale: int = 2) -> Image.Image:
    """Draw a sheet of samples: rows are digits, columns prompts, with the prompt above."""
    asked = [
        EvaluationPrompt(caption.format(d=WORDS[digit]), DigitLabel(digit, "", ""), 10 * digit)
        for digit in range(10)
        for caption in CAPTIONS
    ]
    images = (generate(engine, asked, "grid") * 255).round().astype(np.uint8)
    cell, head = SIZE * scale, 30
    sheet = Image.new("RGB", (len(CAPTIONS) * cell, head + 10 * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for column, caption in enumerate(CAPTIONS):
        first, _, second = caption.partition(" on ")
        pen.text((column * cell + 4, 3), first.format(d="…") + ("\non " + second if second else ""), fill="black")
    for n, image in enumerate(images):
        tile = Image.fromarray(image).resize((cell, cell), Image.Resampling.LANCZOS)
        sheet.paste(tile, (n % len(CAPTIONS) * cell, head + n // len(CAPTIONS) * cell))
    return sheet


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:digits", help="builtin:NAME or a folder")
    parser.add_argument("--seeds", type=int, default=20, help="images of each digit and of each pair of colours")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number here")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="write a sheet of samples here")
    args = parser.parse_args()
    defaults = Defaults(size=f"{SIZE}x{SIZE}", steps=STEPS, guidance_scale=GUIDANCE, scheduler="ddim")
    engine = DiffusionEngine(Model(path=args.model, defaults=defaults), args.device)
    engine.load()
    report = evaluate(engine, args.seeds)
    Console().print(table(report))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.grid:
        grid(engine).quantize(256).save(args.grid, optimize=True)  # few colours: a quarter of the size
    for what in missed(report):
        print(f"target missed: {what}", file=sys.stderr)
    return 1 if missed(report) else 0


if __name__ == "__main__":
    sys.exit(main())
