"""Log lines cannot be forged, and log files do not grow beyond their bounds."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from configs.log_files import appended_file, backup_path, rotate_log
from configs.logs import EscapingFormatter, configure_logging
from configs.sections import Logging
from scripts.harness.processes import PATIENCE_S, ROOT, wait_until


def formatted(*args: object, multiline: bool = False, exc: BaseException | None = None) -> str:
    info = (type(exc), exc, None) if exc is not None else None
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "got %s\n", args, info)
    return EscapingFormatter("%(name)s: %(message)s", multiline=multiline).format(record)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a seven é 七", "a seven é 七"),
        ("x\n2026-11-27 FORGED", "x\\n2026-11-27 FORGED"),
        ("\x1b[31m\r\x07\x00\x7f", "\\x1b[31m\\r\\x07\\x00\\x7f"),
        ("\x9b31m\u2028\u202eabc", "\\x9b31m\\u2028\\u202eabc"),
        ("\udcff", "\\udcff"),
    ],
)
def test_control_characters_are_escaped(text: str, expected: str) -> None:
    assert formatted(text) == f"x: got {expected}\\n"


def test_own_texts_of_several_lines_keep_them() -> None:
    assert formatted("a\nb\x1b", multiline=True) == "x: got a\nb\\x1b\n"


def test_tracebacks_are_escaped() -> None:
    text = formatted("a", exc=ValueError("\x1b]0;title\x07\n2026-11-27 FORGED"))
    assert text.endswith("\n  ValueError: \\x1b]0;title\\x07\n  2026-11-27 FORGED")


def test_libraries_do_not_log_what_clients_send(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with warnings.catch_warnings():
            configure_logging("debug")
            for library in ("python_multipart.multipart", "PIL.PngImagePlugin"):
                logging.getLogger(library).warning("%s", "of a client")
            warnings.warn_explicit("of a client", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert capsys.readouterr().err == ""


# ---- sizes


@pytest.mark.parametrize("backups", [0, 1, 3])
def test_files_and_number_of_backups_are_bounded(tmp_path: Path, backups: int) -> None:
    log, limits = tmp_path / "w.log", Logging(max_bytes=4096, backups=backups)
    with log.open("ab", buffering=0) as writer:  # it stays open, as that of a running child
        for number in range(500):
            writer.write(b"%099d\n" % number)
            rotate_log(log, limits)
        writer.write(b"last\n")
    files = sorted(tmp_path.iterdir())
    assert files == [log, *(backup_path(log, number) for number in range(1, backups + 1))]
    assert all(path.stat().st_size <= 4096 for path in files)
    lines = b"".join(path.read_bytes() for path in [*reversed(files[1:]), log]).splitlines()
    assert lines[-1] == b"last"
    numbers = [int(line) for line in lines[:-1] if len(line) == 99]
    assert numbers == sorted(numbers)
    assert numbers[-1:] in ([499], [])


def test_only_the_end_of_a_huge_file_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    log.write_bytes(b"a" * 1_000_000 + b"b" * 4096)
    assert rotate_log(log, Logging(max_bytes=4096, backups=1))
    assert (log.stat().st_size, backup_path(log, 1).read_bytes()) == (0, b"b" * 4096)


def test_file_is_emptied_where_no_copy_can_be_made(tmp_path: Path) -> None:
    log = tmp_path / "w.log"
    log.write_bytes(b"a" * 5000)
    backup_path(log, 1).mkdir()
    assert rotate_log(log, Logging(max_bytes=4096, backups=1))
    assert log.stat().st_size == 0


WRITES = """
import logging, os, pathlib, sys, time
from configs.log_files import rotate_own_log
from configs.sections import Logging
rotate_own_log(pathlib.Path(sys.argv[1]), Logging(max_bytes=4096, backups=1))
while True:
    os.write(2, b"raw output of a library\\n" * 20)
    time.sleep(0.02)
"""


def test_a_process_bounds_all_its_output_without_a_parent(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "w.log"
    with log.open("ab") as output:
        command = [sys.executable, "-c", textwrap.dedent(WRITES), str(tmp_path)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    try:
        wait_until(backup_path(log, 1).exists, "the first rotation")
        assert backup_path(log, 1).stat().st_size <= 4096
    finally:
        child.kill()
        child.wait(PATIENCE_S)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """Without O_APPEND the writer would go on at its old place and leave a hole."""
    for mode, expected in (("ab", tmp_path / "x"), ("wb", None)):
        with (tmp_path / "x").open(mode) as file:
            assert appended_file(file.fileno()) == expected
    assert appended_file(99_999) is None
