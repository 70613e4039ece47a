"""Evaluate the built-in text model on held-out questions: share of exactly equal answers by category.

    python -m scripts.text_model.evaluation --json worker/builtin/tiny-text/EVALUATION.json

The stored weights are evaluated in float32, greedily. Exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from scripts.text_model.chat import Message, Tool, with_reasoning
from scripts.text_model.domain import CATEGORIES, any_question, any_tool_use, question, system_message, turns
from scripts.text_model.tools import report

MODEL = Path(__file__).parents[2] / "worker" / "builtin" / "tiny-text"
#: The name of all single questions together, and their target.
ALL, TARGET = "all questions", 0.95
_BATCH = 32
#: Tokens of the earlier turns in the category of long conversations.
_LONG_TOKENS = (600, 900)


class Trial(NamedTuple):
    """A conversation with the only correct answer to its last message."""

    category: str
    messages: Sequence[Message]
    answer: str
    tools: tuple[Tool, ...] = ()
    enable_thinking: bool = False


def questions(rng: random.Random, number: int) -> Iterator[Trial]:
    """`number` different held-out questions of each category, or all if there are fewer."""
    for category in CATEGORIES:
        drawn: dict[str, Trial] = {}
        for _ in range(20 * number):
            one = question(rng, category, held_out=True)
            drawn[one.prompt] = Trial(category, [{"role": "user", "content": one.prompt}], one.answer)
            if len(drawn) == number:
                break
        yield from drawn.values()


def conversations(rng: random.Random, tokenizer: PreTrainedTokenizerBase, number: int) -> Iterator[Trial]:
    """`number` trials of each use that is more than one question."""
    for _ in range(number):
        last = any_question(rng, held_out=True)
        asked: Message = {"role": "user", "content": last.prompt}
        yield Trial("after a system message", [{"role": "system", "content": system_message(rng)}, asked], last.answer)
        earlier = [any_question(rng, held_out=False) for _ in range(rng.randint(1, 5))]
        yield Trial("after other questions", [*turns(earlier), asked], last.answer)
        addition = question(rng, "addition", held_out=True)
        answer = with_reasoning(addition.reasoning, addition.answer)
        yield Trial("reasoning", [{"role": "user", "content": addition.prompt}], answer, (), True)
        use = any_tool_use(rng, held_out=True)
        call: list[Message] = [{"role": "user", "content": use.prompt}]
        yield Trial("tool calls", call, use.call, use.tools)
        result = [*call, {"role": "assistant", "content": use.call}, {"role": "tool", "content": use.result}]
        yield Trial("tool results", result, report(use.result), use.tools)
    for _ in range(max(1, number // 4)):
        last = any_question(rng, held_out=True)
        yield Trial(
            "long conversations",
            [*_long_history(rng, tokenizer), {"role": "user", "content": last.prompt}],
            last.answer,
        )


def _long_history(rng: random.Random, tokenizer: PreTrainedTokenizerBase) -> list[Message]:
    length, history = rng.randint(*_LONG_TOKENS), turns([any_question(rng, held_out=False)])
    while len(encode(tokenizer, Trial("", history, ""))) < length:
        history += turns([any_question(rng, held_out=False)])
    return history


def encode(tokenizer: PreTrainedTokenizerBase, trial: Trial) -> list[int]:
    """Return the prompt as tokens, by the chat template of the model."""
    text = tokenizer.apply_chat_template(
        trial.messages,
        tools=list(trial.tools) or None,
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=trial.enable_thinking,
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


class Shares(NamedTuple):
    """The share of exact answers in a category."""

    exact: float
    #: Number of questions.
    of: int


class TextModel:
    """The model with its tokenizer, in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def answers(self, trials: Sequence[Trial], max_tokens: int = 96) -> list[str]:
        """Return the greedy answers, from one batch that is padded on the left."""
        prompts = [encode(self.tokenizer, trial) for trial in trials]
        length = max(map(len, prompts))
        tokens = torch.tensor([[0] * (length - len(ids)) + ids for ids in prompts])
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts])
        output = self.model.generate(tokens, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False)
        texts: list[str] = self.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        return texts


def evaluate(
    model: TextModel, trials: Sequence[Trial], max_tokens: int = 96
) -> tuple[dict[str, Shares], list[tuple[Trial, str]]]:
    """Return the shares of exact answers by category, and the wrong ones."""
    # Similar lengths share a batch.
    ordered = sorted(trials, key=lambda trial: (trial.category, len(trial.answer)))
    texts: list[str] = []
    for start in track(range(0, len(ordered), _BATCH), "evaluating"):
        texts += model.answers(ordered[start : start + _BATCH], max_tokens)
    right: dict[str, list[bool]] = {trial.category: [] for trial in trials}
    for trial, text in zip(ordered, texts, strict=True):
        right[trial.category].append(text == trial.answer)
    wrong = [(trial, text) for trial, text in zip(ordered, texts, strict=True) if text != trial.answer]
    report = {category: Shares(round(fmean(each), 4), len(each)) for category, each in right.items()}
    single = [each for category in CATEGORIES for each in right.get(category, [])]
    return {ALL: Shares(round(fmean(single), 4), len(single)), **report} if single else report, wrong


def missed(report: Mapping[str, Shares]) -> bool:
    """Return whether too few questions have an exact answer."""
    return report[ALL].exact < TARGET


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the model")
    parser.add_argument("--number", type=int, default=100, help="questions of each category")
    parser.add_argument("--seed", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the report there")
    parser.add_argument("--wrong", type=int, default=3, help="wrong answers to show of each category")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, rng = TextModel(args.model), random.Random(args.seed)
    trials = [*questions(rng, args.number), *conversations(rng, model.tokenizer, args.number)]
    report, wrong = evaluate(model, trials)
    table = Table("category", "exact", "of")
    for category, share in report.items():
        table.add_row(category, f"{share.exact:.1%}", str(share.of))
    console = Console()
    console.print(table)
    for category in report:
        for trial, text in [each for each in wrong if each[0].category == category][: args.wrong]:
            console.print(
                f"{category}: {trial.messages[-1]['content']!r} -> {text!r}, not {trial.answer!r}", markup=False
            )
    if args.json is not None:
        text = json.dumps({category: share._asdict() for category, share in report.items()}, indent=2)
        args.json.write_text(text + "\n")
    return 1 if missed(report) else 0


if __name__ == "__main__":
    sys.exit(main())
