"""The process of the contenders of a benchmark."""

from __future__ import annotations

from pathlib import Path

from scripts.bench.text.contender_process import run_contenders

#: Writes more to its standard error than a pipe holds. It ends itself if nobody reads that.
_LOUD = """#!/bin/sh
timeout 30 sh -c 'head -c 300000 /dev/zero | tr "\\0" x >&2; echo >&2; echo the last line >&2' || exit 9
echo 'RESULT {"contender": "one", "start_s": 1}'
exit 3
"""


def test_contender_that_writes_many_errors(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(_LOUD)
    program.chmod(0o755)
    results = list(run_contenders(program, {"contenders": ["one", "two"]}))
    assert results == [{"contender": "one", "start_s": 1}, {"contender": "two", "reason": "the last line"}]
