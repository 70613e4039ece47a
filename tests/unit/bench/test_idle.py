"""The memory of balancer and controller where no other process shares their libraries."""

from __future__ import annotations

import pytest

from scripts.bench.serving.idle import file_pages, pair_mb

SMAPS = """\
55d0-55d1 rw-p 00000000 00:00 0 [heap]
Rss:                 900 kB
Anonymous:           900 kB
7f00-7f10 r-xp 00000000 08:01 42 /usr/lib/libpython.so
Rss:                5000 kB
Anonymous:             0 kB
7f10-7f11 rw-p 00010000 08:01 42 /usr/lib/libpython.so
Rss:                 300 kB
Anonymous:           200 kB
7f20-7f21 rw-p 00000000 00:00 0
Rss:                 700 kB
Anonymous:           700 kB
"""


def test_pages_of_files_are_those_that_nobody_has_changed() -> None:
    assert file_pages(SMAPS) == pytest.approx({"/usr/lib/libpython.so": 5100 * 1024 / 1e6})


def test_each_file_counts_once() -> None:
    assert pair_mb(50.0, {"python": 5.0, "ssl": 2.0}, {"python": 4.0, "zmq": 1.0}) == pytest.approx(58.0)
