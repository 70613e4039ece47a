"""A custom policy in a real controller: whatever it does, the server goes on."""

from __future__ import annotations

from pathlib import Path

from scripts.harness.balancer import sim
from scripts.harness.instance import Instance

#: It does what the file `mode` beside it says.
POLICY = """
import sys, time
from pathlib import Path
from controller.types import Decision

def scale(observation):
    mode = Path(__file__).with_name("mode").read_text()
    if mode == "exit":
        sys.exit(3)
    if mode == "slow":
        time.sleep(1.2)
    strange = {"no text": (2, None), "surrogate": (2, "\\ud800 seen"), "no number": ("2", "why")}
    return Decision(*strange.get(mode, (1, "fine")))
"""


def test_nothing_that_a_policy_does_ends_the_server(tmp_path: Path) -> None:
    (tmp_path / "own_policy.py").write_text(POLICY)
    mode = tmp_path / "mode"
    mode.write_text("fine")
    scaling = {"policy": "own_policy:scale", "min_workers": 1, "max_workers": 2, "interval_s": 0.2}
    instance = Instance(tmp_path, {"models": {"m": sim(scaling=scaling)}}, cwd=tmp_path)
    try:
        instance.until_workers(1)
        for content, logged in (
            ("no text", "own_policy:scale must return a Decision with a whole number and a text"),
            ("exit", "own_policy:scale has called sys.exit(3)"),
            ("no number", "not Decision(desired='2'"),
            ("slow", "no command executed; custom policies: own_policy:scale"),
        ):
            mode.write_text(content)
            instance.until_logged(logged)
        mode.write_text("surrogate")
        instance.until_workers(2)
        instance.until(lambda: instance.next_reports()[0].models[0].reason == "? seen", "the reason")
        mode.write_text("fine")
        instance.until_workers(1)
    finally:
        instance.end()
