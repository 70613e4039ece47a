"""The load balancer with a sampling profiler: `python -m scripts.bench.serving.sampled_balancer [argument ...]`.

SIGUSR2 starts it, and the second one stops it and writes `samples.json` into the data directory: the number of samples
by stack, with the innermost function first. A sample is taken after every millisecond of CPU time. Only functions of
this repository are in a stack.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from loadbalancer import __main__ as loadbalancer

_ROOT = f"{Path(__file__).resolve().parents[3]}/"
_INTERVAL_S = 0.001
#: Functions of a stack that are kept.
_MAX_DEPTH = 12


class Sampler:
    """Counts the stacks of the main thread."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._is_on = False
        self._samples: Counter[tuple[str, ...]] = Counter()
        signal.signal(signal.SIGPROF, self._on_sample)
        signal.signal(signal.SIGUSR2, self._on_toggle)

    def _on_toggle(self, _: int, __: FrameType | None) -> None:
        self._is_on = not self._is_on
        interval = _INTERVAL_S if self._is_on else 0.0
        signal.setitimer(signal.ITIMER_PROF, interval, interval)
        if not self._is_on:
            part = self._out.with_suffix(".part")
            part.write_text(json.dumps([[*item] for item in self._samples.items()]))
            part.rename(self._out)
            self._samples.clear()

    def _on_sample(self, _: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None and len(stack) < _MAX_DEPTH:
            file = frame.f_code.co_filename
            if file.startswith(_ROOT) and "/site-packages/" not in file:
                stack.append(f"{file.removeprefix(_ROOT)}:{frame.f_code.co_qualname}")
            frame = frame.f_back
        self._samples[tuple(stack)] += 1


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sampler = Sampler(Path(arguments[arguments.index("--data-dir") + 1]) / "samples.json")
    sys.exit(loadbalancer.main(arguments))
