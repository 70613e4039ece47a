"""Measures some contenders in one process, load by load in turn, and prints a JSON line for each result.

`python -m scripts.bench.text` starts it in the environment of each library. Standard library only.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any, NoReturn

from scripts.bench.text.contenders import make_contender
from scripts.bench.text.driving import Contender, drive
from scripts.bench.text.workload import TokenRequest, admission_cells, make_requests, sweep_requests

_OWN = "muster"
#: Texts of the largest batch that `generate` computes one by one.
_MOST_ONE_BY_ONE = 4
#: In a cell of the sweep over admissions; large batches have twice their places.
_FEWEST_REQUESTS = 16


def main() -> NoReturn:
    plan: dict[str, Any] = json.loads(sys.argv[1])
    contenders: dict[str, Contender] = {}
    for name in plan["contenders"]:
        started = time.perf_counter()
        try:
            contenders[name] = make_contender(name, plan["models"], plan["dtype"], plan["slots"])
            contenders[name].load()
            drive(contenders[name], make_requests([(16, 4)] * 2, (1.0, 1.0), (16, 4)), 2)
        except Exception as error:
            contenders.pop(name, None)
            _report({"contender": name, "reason": f"{type(error).__name__}: {error}"[:300]})
            continue
        seconds = time.perf_counter() - started
        _report({"contender": name, "start_s": seconds, "about": contenders[name].describe()})
    lengths = [tuple(pair) for pair in plan["lengths"]]
    for number in range(plan["rounds"]):
        rate = plan["rate"]
        for load in plan["loads"]:
            is_open = load == "open"
            requests = make_requests(lengths, plan["scales"], plan["bounds"], rate if is_open else None)
            # One text at a time is overloaded from the start: it would only take long.
            able = {name: each for name, each in contenders.items() if not is_open or name != "one at a time"}
            rate = _measure(able, number, load, requests, None if is_open else plan["users"]) or rate
    for batch in plan["sweep"]:
        # Twice the texts take `generate` twice as long: a few say it.
        able = {name: each for name, each in contenders.items() if batch <= _MOST_ONE_BY_ONE or name != "one at a time"}
        _measure(able, 0, f"batch {batch}", sweep_requests(batch, *plan["sweep_shape"]), batch)
    if _OWN in contenders:
        for batch, interval in admission_cells(plan["admissions"]["batches"], plan["admissions"]["intervals"]):
            size = max(2 * batch, _FEWEST_REQUESTS)
            own = [lengths[place % len(lengths)] for place in range(size)]
            requests = make_requests(own, plan["scales"], plan["bounds"])
            figures = drive(contenders[_OWN], requests, batch, interval)
            _report({"contender": _OWN, "round": 0, "places": batch, "interval": interval} | figures)
    sys.stdout.flush()
    os._exit(0)  # threads of a library may go on for ever


def _measure(
    contenders: dict[str, Contender], number: int, load: str, requests: list[TokenRequest], users: int | None
) -> float | None:
    """Run one load on each. Return the open loop's rate that follows from the first: 70 % of its requests/s."""
    names, rate = list(contenders), None
    random.Random(number).shuffle(names)  # no contender is always the last
    for name in names:
        figures = drive(contenders[name], requests, users)
        _report({"contender": name, "round": number, "load": load} | figures)
        if name == next(iter(contenders)) and load == "closed":
            rate = 0.7 * figures["requests_per_s"]
    return rate


def _report(result: dict[str, Any]) -> None:
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
