"""The report about an engine: what works, and what is wrong with it."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from configs.model_settings import Model
from configs.settings import Settings
from worker.engine_check import check_engine, engine_to_check

SOURCE = """
import random
import muster
class Good:
    max_batch_size = 4
    def load(self, device): self.device = device
    def predict(self, items: list[str]) -> list[str]:
        return [item.upper() for item in items]
    def example(self): return "a"

class Silent:
    def predict(self, items: list[str]) -> list[str]: return items

class WrongType(Good):
    def predict(self, items: list[str]) -> list[int]: return items

class OwnType(Good):
    def predict(self, items: list[str]) -> list["Good"]: return items

class Typed(Good):
    def predict(self, items: list[str]) -> list[muster.Content]: return [muster.Content(b"x") for _ in items]

class OneOnly(Good):
    def predict(self, items: list[str]) -> list[str]:
        if len(items) > 1: raise ValueError("one at a time")
        return items

class NoBatches(Good):
    def predict(self, items: list[str]) -> list[str]: return items[:1]

class Stream(Good):
    def predict(self, item: str):
        yield from item

class Forgetful:
    def start(self, item: int): return {"left": item}
    def step(self, states):
        for state in states: state["left"] -= 1
        return [state["left"] <= 0 for state in states]
    def result(self, state): return state.get("kept", "lost")
    def save(self, state): return {"left": state["left"], "kept": "restored"}
    def restore(self, item, saved): return saved
    def example(self): return 3

class Leaving(Good):
    def load(self, device): raise SystemExit(5)

class NoWeights(Good):
    def load(self, device): self.weights = {}["weights"]

class BadWarmUp(Good):
    def warm_up(self): open("/no/such/file")

class NoExample(Good):
    def example(self): raise ValueError("no input today")

class Unclosable(Good):
    def close(self): raise OSError("still open")

class Unloadable(Good):
    def load(self, device): raise OSError("no weights on " + device)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / f"engines{random.randrange(10**9)}.py"
    file.write_text(SOURCE)
    return file


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("Good", None, ""),
        ("Stream", None, ""),
        ("OwnType", None, ""),
        ("Typed", None, ""),
        ("Good", '"text"', ""),
        ("Silent", None, "nothing was run: add a method example() to the class, or give an item with --input"),
        ("Silent", '"text"', ""),
        ("Silent", "5", "one item failed: Input should be a valid string"),
        ("Silent", "{broken", "--input {broken: neither JSON nor a file"),
        ("WrongType", None, "the result is not what the annotation says: Input should be a valid integer"),
        ("OneOnly", None, "a batch of 4 equal items raises, and is then taken apart: ValueError: one at a time"),
        ("NoBatches", None, "4 of 4 equal items failed in a batch: predict returned 1 results for 4 items"),
        ("Forgetful", None, "the result after save and restore is"),
        ("Unloadable", None, "OSError: no weights on cpu"),
        ("Leaving", None, "Leaving.load failed: line 46: SystemExit: 5"),
        ("NoWeights", None, "NoWeights.load failed: line 49: KeyError: 'weights'"),
        ("BadWarmUp", None, "BadWarmUp.warm_up failed: line 52: FileNotFoundError"),
        ("NoExample", None, "NoExample.example failed: ValueError: no input today"),
        ("Unclosable", None, "close failed: OSError: still open"),
        ("Missing", None, "has no class Missing; it defines"),
    ],
)
def test_problems_are_reported(file: Path, name: str, given: str | None, problem: str) -> None:
    report = check_engine(Model(engine=f"{file}:{name}"), "cpu:0", given)
    if problem:
        assert any(problem in each for each in report.problems), report
    else:
        assert not report.problems


def test_table_has_times_and_schema(file: Path) -> None:
    text = str(check_engine(Model(engine=f"{file}:Good"), "cpu:0", None))
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "engine",
        "class",
        "import",
        "load",
        "input",
        "result",
        "warm-up",
        "one item",
        "full batch",
        "mixed batch",
    ]
    assert "one item     " in text
    assert '"A"' in text
    assert "4 items in" in text


def test_examples_of_the_guide_are_right(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "engines.md").read_text()
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class " in block]
    file = tmp_path / "guide.py"
    file.write_text("import numpy\nfrom collections.abc import Iterator\n" + "\n".join(blocks))
    for name, given in [("Classifier", None), ("Count", "3"), ("Countdown", "3")]:
        assert check_engine(Model(engine=f"{file}:{name}"), "cpu:0", given).problems == []


def settings(**models: Any) -> Settings:
    return Settings(models={name: Model(**model) for name, model in models.items()})


def test_engine_is_given_or_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    both = settings(images={"engine": "sim"}, own={"engine": "a:B"}, other={"engine": "c:D"})
    assert engine_to_check(both, "x.py:E", None).engine == f"{tmp_path}/x.py:E"
    assert engine_to_check(both, "", None).engine == "a:B"
    assert engine_to_check(both, "", "other").engine == "c:D"
    for engine, name, text in [
        ("nothing", None, "nothing: allowed: diffusion, text, vllm, openvino, sim, package.module:Class"),
        ("", "images", "models with one: own, other"),
    ]:
        with pytest.raises(ValueError, match=text):
            engine_to_check(both, engine, name)
    with pytest.raises(ValueError, match="no configured model has one"):
        engine_to_check(settings(images={"engine": "sim"}), "", None)


def test_debug_log_has_the_traceback(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "worker.engine_check")
    check_engine(Model(engine=f"{file}:NoWeights"), "cpu:0", None)
    assert 'self.weights = {}["weights"]' in caplog.text
