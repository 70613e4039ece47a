"""Output that can neither stop nor delay its writer."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import pytest

from configs.streams import BackgroundStream

PATIENCE_S = 30.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The reading descriptor and the writing stream of a pipe that holds one page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with open(writing, "w", encoding="ascii", closefd=False) as stream:
        yield reading, stream
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            assert fd == reading, "only the reader is closed by tests"


def test_text_arrives_in_order(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    background = BackgroundStream(stream)
    for number in range(100):
        print(number, file=background)
    assert background.drain(PATIENCE_S)
    assert os.read(reading, 4096).decode() == "".join(f"{number}\n" for number in range(100))


def test_unencodable_text_is_escaped(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    background = BackgroundStream(stream)
    background.write("ü 中 \ud800")
    assert background.drain(PATIENCE_S)
    assert os.read(reading, 4096) == rb"\xfc \u4e2d \ud800"


def test_closed_reader_is_ignored(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    background = BackgroundStream(stream)
    os.close(reading)
    for _ in range(3):
        background.write("text")
        assert background.drain(PATIENCE_S), "the writing thread goes on after a broken pipe"


def test_stuck_reader_loses_the_rest_and_is_told(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    background = BackgroundStream(stream, max_pending=10_000)
    for _ in range(100):
        background.write("x" * 1000)
    assert not background.drain(0.0)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(_read_until, reading, b"end")
        assert background.drain(PATIENCE_S)
        background.write("end")
        received = reader.result(PATIENCE_S)
    kept = received.count(b"x")
    assert kept < 100_000
    assert f"{100_000 - kept} characters of output were not read in time".encode() in received


def _read_until(descriptor: int, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        received += os.read(descriptor, 65536)
    return received


@pytest.mark.parametrize("target", ["closed", "full device", "stuck", "file"])
def test_program_ends_whatever_its_output_is(target: str, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from configs.streams import detach_standard_streams\n"
        "detach_standard_streams()\n"
        "for _ in range(1000): print('-' * 1000)\n"
        "print('ü', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    reading, writing = os.pipe()
    files = {"full device": "/dev/full", "file": f"{tmp_path}/out"}
    if target == "closed":
        os.close(reading)
    output = os.open(files[target], os.O_WRONLY | os.O_CREAT) if target in files else writing
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=output, stderr=output, env=environment, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 7
    for fd in {writing, output} | (set() if target == "closed" else {reading}):
        os.close(fd)
    if target == "file":
        text = (tmp_path / "out").read_text()
        assert text.count("-") == 1_000_000
        assert text.endswith("\\xfc\n")


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1], [0, 1, 2]])
def test_missing_streams_are_the_null_device(closed: list[int], tmp_path: Path) -> None:
    """Otherwise a file takes the number, and what is printed ends up in it."""
    program = (
        "import os, sys\n"
        "from configs.streams import detach_standard_streams\n"
        "detach_standard_streams()\n"
        f"handle = os.open({str(tmp_path / 'file')!r}, os.O_WRONLY | os.O_CREAT)\n"
        f"assert all(os.path.samefile(f'/dev/fd/{{number}}', os.devnull) for number in {closed})\n"
        "print(sys.stdin.closed, sys.stdout.isatty(), sys.stderr.isatty())\n"
        "print('text', file=sys.stderr)\n"
        "sys.exit(7 if handle > 2 else 1)\n"
    )

    def close() -> None:
        for number in closed:
            os.close(number)

    with (tmp_path / "out").open("w") as out:
        words = [sys.executable, "-c", program]
        done = subprocess.run(words, stdout=out, stderr=out, preexec_fn=close, timeout=PATIENCE_S, check=False)
    assert done.returncode == 7, (tmp_path / "out").read_text()
    assert (tmp_path / "file").read_bytes() == b""
