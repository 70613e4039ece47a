"""Engines of users with real processes: another interpreter, errors of one item, streams, work that moves."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from scripts.harness.instance import Instance
from scripts.harness.processes import PATIENCE_S

STEPS = 120
SOURCE = '''
import os, sys, time
from pydantic import BaseModel
from muster import Failed

class Word(BaseModel):
    text: str
    times: int = 1

class Repeat:
    max_batch_size = 8
    def load(self, device):
        print("loaded by", sys.executable, "on", device)
    def predict(self, items: list[Word]) -> list[str]:
        if any(item.text == "raise" for item in items):
            raise RuntimeError("raised on demand")
        return [Failed("refused", status=404) if item.text == "bad" else item.text * item.times for item in items]

class Walk:
    """Tells which processes took how many steps. From the middle on it is slow, until there is the file `gate`."""
    max_batch_size = 4
    def start(self, item: int): return {"left": item, "steps": {}}
    def step(self, states):
        is_slow = any(state["left"] <= HALF for state in states) and not os.path.exists("GATE")
        time.sleep(0.3 if is_slow else 0.02)
        for state in states:
            state["left"] -= 1
            pid = str(os.getpid())
            state["steps"][pid] = state["steps"].get(pid, 0) + 1
        return [state["left"] == 0 for state in states]
    def result(self, state): return state["steps"]
    def save(self, state): return state
    def restore(self, item, saved): return saved
    def preview(self, state): return state["left"]
'''


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("engines")
    source = SOURCE.replace("GATE", str(folder / "gate")).replace("HALF", str(STEPS // 2))
    (folder / "engines.py").write_text(source)
    models = {
        "repeat": {"engine": "engines.py:Repeat", "python": sys.executable},
        "walk": {"engine": "engines.py:Walk", "batching": {"checkpoint_every": 5}},
    }
    made = Instance(folder, {"models": models, "devices": {"cpu_slots": 2}})
    made.until_workers(2)
    yield made
    made.end()


def predict(instance: Instance, model: str, *instances: Any, **options: Any) -> httpx.Response:
    body = {"instances": instances} | options
    return httpx.post(f"{instance.url}/v1/models/{model}:predict", json=body, timeout=PATIENCE_S)


def test_predictions_from_another_interpreter(instance: Instance) -> None:
    answer = predict(instance, "repeat", {"text": "a"}, {"text": "b", "times": 3})
    assert answer.json() == {"predictions": ["a", "bbb"]}
    [log] = (instance.folder / "logs").glob("repeat-*.log")
    assert f"loaded by {sys.executable} on cpu" in log.read_text(), "what the class prints"
    card = httpx.get(f"{instance.url}/v1/models/repeat", timeout=PATIENCE_S).json()
    assert (card["engine"], card["pipeline"]) == ("engines.py:Repeat", "Repeat")


@pytest.mark.parametrize(
    ("item", "status", "text"),
    [
        ({"text": 5}, 400, "text: Input should be a valid string"),
        ({"text": "bad"}, 404, "refused"),
        ({"text": "raise"}, 500, "RuntimeError: raised on demand"),
    ],
)
def test_failing_item_costs_no_other(instance: Instance, item: Any, status: int, text: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: predict(instance, "repeat", each), [{"text": "x"}, item, {"text": "y"}]))
    assert [answer.status_code for answer in found] == [200, status, 200]
    assert text in found[1].json()["error"]["message"]


def test_killed_worker_loses_few_steps(instance: Instance) -> None:
    body = {"instances": [STEPS], "stream": True}
    left: list[int] = []
    with httpx.stream("POST", f"{instance.url}/v1/models/walk:predict", json=body, timeout=PATIENCE_S) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event["type"] == "prediction.chunk":
                left.append(event["prediction"])
                if left[-1] == STEPS // 2 - 6:  # the slow steps have left time for a checkpoint
                    [pid] = [record.pid for record in instance.records().values() if record.model == "walk"]
                    os.kill(pid, signal.SIGKILL)
                    (instance.folder / "gate").touch()
    *previews, taken = left
    assert previews == list(range(STEPS - 1, 0, -1)), "each preview comes once, whichever worker made it"
    assert sum(taken.values()) == STEPS  # type: ignore[attr-defined]
    assert len(taken) == 2  # type: ignore[arg-type]
    assert min(taken.values()) > STEPS // 4  # type: ignore[attr-defined]
