"""The table of results in `docs/experiments.md`, from the files in `scripts/bench/results/`.

python -m scripts.bench.experiments.page            # write it
python -m scripts.bench.experiments.page --check    # fail if the page shows other results
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

from scripts.bench.experiments.experiment import DOCS, RESULTS

PAGE = DOCS / "experiments.md"
_BEGIN, _END = "<!-- results: python -m scripts.bench.experiments.page -->\n", "<!-- end of results -->"


class PublishedResult(NamedTuple):
    """What an experiment asks, its section of the page, and what was published."""

    question: str
    anchor: str
    published: str


EXPERIMENTS = {
    "batching": PublishedResult(
        "users held by one worker, one request at a time and in batches of 12",
        "a-dynamic-batching",
        "about 30 and 60; throughput 1.5x",
    ),
    "autoscaling": PublishedResult(
        "users held by one worker and by up to four, with autoscaling", "b-autoscaling", "60 and 400, 6.7 times as many"
    ),
    "thousand_users": PublishedResult(
        "more than 1,000 concurrent users, without an error", "c-more-than-1000-users", "over 1,000 in production"
    ),
    "step_level": PublishedResult(
        "latency that step-level batching saves against batches of whole requests",
        "d-step-level-batching",
        "3 to 12.8 % (A10), 2 to 18.5 % (T4)",
    ),
    "text_batches": PublishedResult(
        "continuous batching of text, by batch size", "e-continuous-batching-of-text", "best at 16 to 32"
    ),
}


def results_table(folder: Path = RESULTS) -> str:
    """Return the table. Raises `OSError` if a result is missing."""
    rows = ["| question | published | here | seconds |", "|---|---|---|---|"]
    for name, (question, anchor, published) in EXPERIMENTS.items():
        result = json.loads((folder / f"experiment_{name}.json").read_text())
        rows.append(f"| [{question}](#{anchor}) | {published} | {result['summary']} | {result['took_s']} |")
    return "\n".join(rows) + "\n"


def with_table(page: str, table: str) -> str:
    """Return the page with this table in place of its own."""
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    assert begin, "the page has no place for its results"
    assert end, "the place for results has no end"
    return f"{before}{begin}{table}{end}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    page = PAGE.read_text()
    wanted = with_table(page, results_table())
    if args.check:
        print("the page shows the results" if page == wanted else f"{PAGE.name} shows other results than the files")
        return int(page != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
