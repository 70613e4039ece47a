"""Limits of containers, from the texts of the files that the kernel shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.cgroups import CgroupLimits, read_limits

V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
CPU1, MEMORY1 = "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"
UNLIMITED_V1 = "9223372036854771712\n"


def limits(mounts: str, groups: str, **files: str) -> CgroupLimits:
    texts = {"/proc/self/mountinfo": mounts, "/proc/self/cgroup": groups} | files
    return read_limits(texts.get)


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "expected"),
    [
        (V2, "0::/\n", {"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, CgroupLimits(0.5)),
        (V2, "0::/\n", {"/sys/fs/cgroup/cpu.max": "max 100000\n"}, CgroupLimits()),
        (V2, "0::/\n", {"/sys/fs/cgroup/cpu.max": "0 100000\n"}, CgroupLimits()),
        (V2, "0::/\n", {"/sys/fs/cgroup/cpu.max": "50000\n"}, CgroupLimits()),
        (V2, "0::/\n", {"/sys/fs/cgroup/cpu.max": "50000 0\n"}, CgroupLimits()),
        # Nested: the lowest limit on the way up counts.
        (
            V2,
            "0::/kubepods/pod1/c1\n",
            {
                "/sys/fs/cgroup/kubepods/pod1/c1/cpu.max": "max 100000",
                "/sys/fs/cgroup/kubepods/pod1/cpu.max": "250000 100000",
                "/sys/fs/cgroup/kubepods/cpu.max": "800000 100000",
            },
            CgroupLimits(2.5),
        ),
        (
            V2,
            "0::/a\n",
            {
                "/sys/fs/cgroup/a/memory.max": "max\n",
                "/sys/fs/cgroup/memory.max": "4294967296\n",
                "/sys/fs/cgroup/memory.current": "1048576\n",
            },
            CgroupLimits(None, 4 << 30, 1 << 20),
        ),
        # A group that the container does not see.
        (V2, "0::/../../other\n", {"/sys/fs/cgroup/cpu.max": "100000 100000"}, CgroupLimits(1.0)),
        (
            V1.format(root="/"),
            "4:memory:/\n1:cpu,cpuacct:/\n0::/\n",
            {f"{CPU1}/cpu.cfs_quota_us": "150000\n", f"{CPU1}/cpu.cfs_period_us": "100000\n"},
            CgroupLimits(1.5),
        ),
        (
            V1.format(root="/"),
            "1:cpu,cpuacct:/\n",
            {f"{CPU1}/cpu.cfs_quota_us": "-1\n", f"{CPU1}/cpu.cfs_period_us": "100000\n"},
            CgroupLimits(),
        ),
        # Docker without a namespace: the mount's top is the container's group.
        (
            V1.format(root="/docker/abc"),
            "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n",
            {
                f"{CPU1}/cpu.cfs_quota_us": "50000",
                f"{CPU1}/cpu.cfs_period_us": "100000",
                f"{MEMORY1}/memory.limit_in_bytes": "1073741824",
                f"{MEMORY1}/memory.usage_in_bytes": "5",
            },
            CgroupLimits(0.5, 1 << 30, 5),
        ),
        # A nested group of version 1, where only the group above has a limit.
        (
            V1.format(root="/"),
            "4:memory:/api/1\n",
            {
                f"{MEMORY1}/api/1/memory.limit_in_bytes": UNLIMITED_V1,
                f"{MEMORY1}/api/memory.limit_in_bytes": "2147483648",
                f"{MEMORY1}/memory.limit_in_bytes": UNLIMITED_V1,
            },
            CgroupLimits(None, 2 << 30, None),
        ),
        (V2.replace("/sys/fs/cgroup", "/my\\040cgroup"), "0::/\n", {"/my cgroup/cpu.max": "1 2"}, CgroupLimits(0.5)),
        ("", "", {}, CgroupLimits()),
        ("nonsense - cgroup2\n", "nonsense\n", {}, CgroupLimits()),
    ],
)
def test_limits_of_both_versions(mounts: str, groups: str, files: dict[str, str], expected: CgroupLimits) -> None:
    assert limits(mounts, groups, **files) == expected


@given(mounts=st.text(max_size=80), groups=st.text(max_size=40), text=st.text(max_size=20))
def test_any_text_sets_a_limit_or_none(mounts: str, groups: str, text: str) -> None:
    texts = {"/proc/self/mountinfo": V2 + mounts, "/proc/self/cgroup": "0::/\n" + groups}
    found = read_limits(lambda path: texts.get(path, text))
    assert found.cpus is None or found.cpus > 0
