"""Engines that the pages show are engines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
#: What the shorter examples leave out.
_IMPORTS = "from collections.abc import Iterator\nimport numpy\n"


@pytest.mark.parametrize(
    ("page", "name", "item", "result"),
    [
        ("docs/calls.md", "Square", '{"input": 4}', '{"output":16}'),
        ("docs/engines.md", "Classifier", '{"text": "a crash again"}', '"bug"'),
        ("docs/engines.md", "Count", "2", "[1,2]"),
        ("docs/engines.md", "Countdown", "3", '"lift-off"'),
    ],
)
def test_engine_of_a_page_passes_its_check(tmp_path: Path, page: str, name: str, item: str, result: str) -> None:
    blocks = _BLOCK.findall((ROOT / page).read_text())
    code = next(block for block in blocks if f"class {name}:" in block)
    (tmp_path / "shown.py").write_text(_IMPORTS + code)
    words = ["-m", "worker", "--check-engine", f"{tmp_path}/shown.py:{name}", "--input", item]
    ended = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert result in ended.stdout
