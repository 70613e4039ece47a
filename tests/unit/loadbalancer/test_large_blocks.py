"""Memory of large blocks is returned to the system, also after larger ones, and behind a small object."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from scripts.harness.processes import PATIENCE_S, ROOT

_PROGRAM = """
import re
from loadbalancer.large_blocks import return_large_blocks
{call}
def resident():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmRSS:\\s+(\\d+)", file.read())[1])
larger = b"x" * (24 << 20)
del larger
before = resident()
block = b"x" * (16 << 20)
behind = [b"x" * 100_000 for _ in range(20)]
del block
print(resident() - before)
"""


def growth_kib(call: str) -> int:
    command = [sys.executable, "-c", _PROGRAM.format(call=call)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_freed_block_is_returned() -> None:
    assert growth_kib("") > 8 << 10, "glibc returns it by itself: the module is not needed any more"
    assert growth_kib("return_large_blocks()") < 8 << 10
