"""The local launcher with real child processes: every operation in every state, adoption, and reused pids."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import yaml

from configs.cli import EXIT_USAGE
from configs.load import load
from configs.paths import log_dir, served_file
from configs.sections import Logging
from configs.settings import Settings
from controller.launchers.local import LocalLauncher
from controller.runtime.balancer_supervisor import BalancerStartupError, BalancerSupervisor
from host.processes import Processes, ProcessRecord
from host.types import Exit, PollResult, WorkerProcess
from scripts.harness.processes import child_process, wait_until

#: Prints `here` and waits. The child is identified by the name among its arguments.
WAITS = "import time; print('here', flush=True); time.sleep(600)"
IGNORES_SIGNALS = (
    "import signal; [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGTERM, signal.SIGUSR1)]; " + WAITS
)
#: Its first thread ends and another continues: it appears as a zombie, but still holds its files.
WITHOUT_FIRST_THREAD = (
    "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(600,)).start();"
    " print('here', flush=True); ctypes.CDLL(None).pthread_exit(None)"
)
STOPS_ON_SIGTERM = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); " + WAITS


def seconds_from_boot(pid: int) -> float:
    """Return when the process was created."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


class Rig:
    """Successive launchers on one folder, as of successive controllers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records, self.logs = folder / "records", folder / "logs"
        self.logs.mkdir()
        self.launchers: list[Processes] = []
        self.next()

    def next(self) -> Processes:
        self.launchers.append(Processes(self.records, self.logs, Logging()))
        return self.launchers[-1]

    @property
    def current(self) -> Processes:
        return self.launchers[-1]

    def spawn(self, name: str, program: str = WAITS, *, wait: bool = True) -> None:
        self.current.spawn(name, "m", "cpu:0", [sys.executable, "-c", program, name], {})
        if wait:
            wait_until(lambda: "here" in (self.logs / f"{name}.log").read_text(), f"{name} is up")

    def child(self, name: str) -> WorkerProcess:
        [child] = [child for child in self.current.poll().children if child.id == name]
        return child

    def exit(self, name: str) -> Exit:
        found: list[Exit] = []

        def has_ended() -> bool:
            found.extend(ended for ended in self.current.poll().exits if ended.process.id == name)
            return bool(found)

        wait_until(has_ended, f"{name} has ended")
        return found[0]

    def record(self, name: str) -> Path:
        return self.records / f"{name}.json"


def end(launcher: Processes) -> None:
    for child in launcher.poll().children:
        launcher.signal(child.id, signal.SIGKILL)
    wait_until(lambda: not launcher.poll().children, "the end of every child")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    for launcher in made.launchers:
        end(launcher)


@pytest.mark.parametrize(
    ("program", "signum", "status"),
    [
        ("import sys; print('one'); print('two'); sys.exit(3)", None, 3),
        (WAITS, signal.SIGKILL, -9),
        (WAITS, signal.SIGTERM, -15),
        (STOPS_ON_SIGTERM, signal.SIGTERM, 0),
    ],
)
def test_exit_is_reported_once_with_status_and_log(
    rig: Rig, program: str, signum: signal.Signals | None, status: int
) -> None:
    rig.spawn("w", program, wait=signum is not None)
    if signum is not None:
        rig.current.signal("w", signum)
    ended = rig.exit("w")
    assert (ended.process.id, ended.process.model, ended.process.device, ended.status) == ("w", "m", "cpu:0", status)
    assert ended.tail == ("here" if signum is not None else "one\ntwo")
    assert (ended.process.drained_at is not None) == (signum is signal.SIGTERM)
    assert rig.current.poll() == PollResult([], [])
    assert not rig.record("w").exists()


def test_exit_tells_whether_the_worker_has_served(rig: Rig) -> None:
    served = served_file(rig.records, "w")
    rig.spawn("w", f"open({str(served)!r}, 'w').close(); import os; os._exit(7)", wait=False)
    assert rig.exit("w").has_served
    assert not served.exists()
    rig.spawn("v", "import os; os._exit(7)", wait=False)  # now: a poll takes the exits of all
    assert not rig.exit("v").has_served


OPERATIONS: dict[str, Callable[[Rig], object]] = {
    "start": lambda rig: rig.spawn("w", IGNORES_SIGNALS, wait=False),
    "drain": lambda rig: rig.current.signal("w", signal.SIGTERM),
    "hurry": lambda rig: rig.current.signal("w", signal.SIGUSR1),
    "kill": lambda rig: rig.current.signal("w", signal.SIGKILL),
    "poll": lambda rig: rig.current.poll(),
}


@pytest.mark.parametrize(("first", "second", "third"), list(itertools.permutations(OPERATIONS, 3)))
def test_every_operation_is_valid_in_every_state(rig: Rig, first: str, second: str, third: str) -> None:
    pids = set()
    for operation in (first, second, third, third):
        OPERATIONS[operation](rig)
        children = rig.current.poll().children
        assert len(children) <= 1, "at most one child of a name"
        pids |= {child.pid for child in children}
    rig.current.signal("w", signal.SIGKILL)
    wait_until(lambda: not rig.current.poll().children, "nothing of that name")
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_child_that_ignores_signals_is_killed(rig: Rig) -> None:
    rig.spawn("w", IGNORES_SIGNALS)
    rig.current.signal("w", signal.SIGTERM)
    rig.current.signal("w", signal.SIGUSR1)
    assert rig.child("w").drained_at is not None
    rig.current.signal("w", signal.SIGKILL)
    assert rig.exit("w").status == -9


@pytest.mark.parametrize("is_adopted", [False, True])
def test_what_a_child_has_forked_ends_with_it(rig: Rig, is_adopted: bool) -> None:
    """An engine may fork processes, which ignore signals and would hold the device."""
    forks = "import os, signal\nif os.fork() == 0:\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    "
    program = forks + "print('pid', os.getpid(), flush=True)\n    import time; time.sleep(600)\n" + STOPS_ON_SIGTERM
    rig.spawn("w", program)
    wait_until(lambda: "pid" in (rig.logs / "w.log").read_text(), "the forked process")
    forked = psutil.Process(int((rig.logs / "w.log").read_text().partition("pid ")[2].split()[0]))
    if is_adopted:
        rig.next().adopt()
    rig.current.signal("w", signal.SIGTERM)
    rig.exit("w")
    wait_until(lambda: not forked.is_running() or forked.status() == psutil.STATUS_ZOMBIE, "it has ended")


#: A launcher that dies after the start of its child, before the child's record is on disk.
DIES_BEFORE_THE_RECORD = """
import os, signal, sys
from pathlib import Path
from configs.sections import Logging
from host.processes import Processes

class Dying(Processes):
    def _write(self, name):
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
Dying(folder / "records", folder / "logs", Logging()).spawn(
    sys.argv[2], "m", "cpu:0", [sys.executable, "-c", sys.argv[3], sys.argv[2]], {}
)
"""


def processes_named(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found += [process] if name in process.cmdline() else []
    return found


def test_child_without_a_record_does_not_outlive_launcher(rig: Rig) -> None:
    name = f"unrecorded-{os.getpid()}"
    arguments = [str(rig.folder), name, WAITS]
    assert subprocess.run([sys.executable, "-c", DIES_BEFORE_THE_RECORD, *arguments]).returncode == -signal.SIGKILL
    wait_until(lambda: not processes_named(name), "the child is gone")
    assert (rig.logs / f"{name}.log").read_text() == "", "its program never began"
    assert rig.next().adopt() == []


def test_start_fails_if_the_record_cannot_be_written(rig: Rig) -> None:
    rig.records.rmdir()
    with pytest.raises(OSError, match="records"):
        rig.spawn("w1", wait=False)
    assert rig.current.poll() == PollResult([], [])
    assert (rig.logs / "w1.log").read_text() == ""
    rig.records.mkdir()
    rig.spawn("w1")


def test_missing_program_is_named(rig: Rig) -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere/python"):
        rig.current.spawn("w1", "m", "cpu:0", ["/nowhere/python", "-m", "worker"], {})


def test_child_has_own_session(rig: Rig) -> None:
    rig.spawn("w", "import os; print('here', os.getsid(0) == os.getpid(), flush=True); " + WAITS)
    wait_until(lambda: (rig.logs / "w.log").read_text().count("here") == 2, "both lines")
    assert (rig.logs / "w.log").read_text().startswith("here True")


def test_next_launcher_adopts_live_children(rig: Rig) -> None:
    rig.spawn("serving")
    rig.spawn("draining", IGNORES_SIGNALS)
    rig.spawn("dead")
    rig.current.signal("draining", signal.SIGTERM)
    before = {child.id: child for child in rig.current.poll().children}
    psutil.Process(before["dead"].pid).kill()
    wait_until(lambda: psutil.Process(before["dead"].pid).status() == psutil.STATUS_ZOMBIE, "the end of the child")
    adopted = {child.id: child for child in rig.next().adopt()}
    assert set(adopted) == {"serving", "draining"}
    for name, child in adopted.items():
        assert (child.pid, child.model, child.device) == (before[name].pid, "m", "cpu:0")
        assert child.started_at == pytest.approx(before[name].started_at, abs=2.0)
    assert adopted["serving"].drained_at is None
    assert adopted["draining"].drained_at == pytest.approx(before["draining"].drained_at, abs=2.0)
    rig.spawn("serving", wait=False)
    assert rig.child("serving").pid == before["serving"].pid, "it already runs"
    rig.current.signal("serving", signal.SIGKILL)
    assert rig.exit("serving").status is None, "only its parent knows the status"
    assert not rig.record("dead").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems a process ends with its first thread")
def test_process_is_alive_while_one_thread_runs(rig: Rig) -> None:
    rig.spawn("w", WITHOUT_FIRST_THREAD)
    process = psutil.Process(rig.child("w").pid)
    wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, "the end of its first thread")
    [adopted] = rig.next().adopt()
    assert (adopted.id, adopted.pid) == ("w", process.pid)
    assert [child.id for child in rig.current.poll().children] == ["w"], "its last thread still runs"
    rig.current.signal("w", signal.SIGKILL)
    assert rig.exit("w").status is None


@pytest.mark.parametrize(
    ("name", "later_s"),
    [
        ("w", 0.02),  # the pid was given to another process of the same program ...
        ("v", 0.0),  # ... or to another program, after a reboot
    ],
)
def test_reused_pid_is_not_signalled(rig: Rig, name: str, later_s: float) -> None:
    with child_process([sys.executable, "-c", WAITS, "w"], stdout=subprocess.DEVNULL) as other:
        try:
            process = psutil.Process(other.pid)
            wait_until(lambda: "w" in process.cmdline(), "its program")
            created = seconds_from_boot(other.pid)
            record = ProcessRecord(name, "m", "cpu:0", other.pid, created + later_s)
            rig.record(name).write_bytes(msgspec.json.encode(record))
            assert rig.current.adopt() == []
            assert not rig.record(name).exists()
            rig.current.signal(name, signal.SIGKILL)
            assert process.is_running()
            assert process.status() != psutil.STATUS_ZOMBIE
            # The same record with the correct time is adopted.
            rig.record("w").write_bytes(msgspec.json.encode(ProcessRecord("w", "m", "cpu:0", other.pid, created)))
            assert [child.pid for child in rig.current.adopt()] == [other.pid]
        finally:
            other.kill()


def test_process_is_adopted_after_clock_was_set(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.spawn("w")
    # When the clock is set, the kernel moves the time of its start by as much.
    moved = tmp_path / "proc"
    moved.mkdir()
    for entry in Path("/proc").iterdir():
        if entry.name != "stat":
            (moved / entry.name).symlink_to(entry)
    stat = Path("/proc/stat").read_text()
    (moved / "stat").write_text(re.sub(r"(?m)^btime (\d+)$", lambda found: f"btime {int(found[1]) - 3600}", stat))
    before = psutil.boot_time()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(moved))
    assert psutil.boot_time() == before - 3600
    [adopted] = rig.next().adopt()
    assert adopted.id == "w"
    assert abs(adopted.started_at - time.monotonic()) < 600, "its start does not move with the clock"


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"id": "w"}', b'{"id":"w","model":"m","device":"d","pid":0,"created":0}']
)
def test_invalid_record_is_deleted(rig: Rig, content: bytes) -> None:
    rig.record("w").write_bytes(content)
    assert rig.current.adopt() == []
    assert not rig.record("w").exists()


def test_old_logs_are_pruned_except_of_live_children(rig: Rig) -> None:
    rig.spawn("w")
    for number in range(60):
        (rig.logs / f"old-{number:02}.log").write_text("x")
        stamp = time.time() + 10 + number
        os.utime(rig.logs / f"old-{number:02}.log", (stamp, stamp))
    rig.spawn("v")
    remaining = sorted(log.stem for log in rig.logs.glob("*.log"))
    assert remaining == [f"old-{number:02}" for number in range(10, 60)] + ["v", "w"]


# ---- command lines and environments of children

PRINTS_ARGUMENTS = """#!{python}
import json, os, sys, time
print(json.dumps([sys.argv[1:], dict(os.environ)]), flush=True)
time.sleep(600)
"""


def settings(folder: Path, **changes: Any) -> Settings:
    file = folder / "muster.yaml"
    file.write_text(yaml.safe_dump({"models": {"m": {"engine": "sim"}}} | changes))
    return load(file, {"data_dir": str(folder / "data")})


def end_all(launcher: LocalLauncher) -> None:
    for child in launcher.poll().children:
        launcher.kill(child.id)
    wait_until(lambda: not launcher.poll().children, "the end of every child")


@pytest.fixture
def python(tmp_path: Path) -> str:
    """Return a program in place of `python` that prints its arguments and environment."""
    program = tmp_path / "python"
    program.write_text(PRINTS_ARGUMENTS.format(python=sys.executable))
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda:3", {"CUDA_VISIBLE_DEVICES": "3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": None}),
        ("cpu:1", {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
        ("sim:0", {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
    ],
)
def test_worker_is_pinned_to_device(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch, device: str, expected: dict[str, str | None]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MUSTER_SERVER__PORT", "9999")
    own = settings(tmp_path)
    launcher = LocalLauncher(own, python)
    launcher.prepare()
    try:
        launcher.start("w", "m", device)
        log = log_dir(own.data_dir) / "w.log"
        wait_until(lambda: log.read_text().endswith("\n"), "its output")
        argv, env = msgspec.json.decode(log.read_bytes())
    finally:
        end_all(launcher)
    assert {key: env.get(key) for key in expected} == expected
    assert not any(key.startswith("MUSTER_") for key in env), "they are part of the written configuration"
    assert argv[:2] == ["-m", "worker"]
    options = dict(zip(argv[2::2], argv[3::2], strict=True))
    assert (options["--id"], options["--model"], options["--device"]) == ("w", "m", device)
    assert load(Path(options["--config"])).server.port == 9999


@pytest.mark.parametrize(
    ("changes", "outdated"),
    [
        ({}, False),
        ({"min_workers": 3, "devices": {"use": "cpu"}, "workers": {"start_timeout_s": 5}}, False),
        ({"models": {"m": {"engine": "sim", "scaling": {"min_workers": 2}}}}, False),
        ({"server": {"port": 8123}}, True),
        ({"models": {"m": {"engine": "sim", "max_batch_size": 3}}}, True),
    ],
)
def test_children_with_other_configuration_are_drained(
    tmp_path: Path, python: str, changes: dict[str, Any], outdated: bool
) -> None:
    first = LocalLauncher(settings(tmp_path), python)
    first.prepare()
    try:
        first.start("w", "m", "sim:0")
        first.start_balancer()
        logs = [log_dir(tmp_path / "data") / f"{name}.log" for name in ("w", "loadbalancer")]
        wait_until(lambda: all(log.read_text().endswith("\n") for log in logs), "both are up")
        second = LocalLauncher(settings(tmp_path, **changes), python)
        adopted, is_outdated = second.prepare()
        assert {child.id for child in adopted} == {"w", "loadbalancer"}
        assert is_outdated is outdated
        assert {child.drained_at is not None for child in second.poll().children} <= {outdated}
        if outdated:
            wait_until(lambda: not first.poll().children, "their end")
        else:
            assert len(second.poll().children) == 2
    finally:
        end_all(first)


def refuses(folder: Path) -> str:
    """Return a program in place of `python` that cannot start."""
    program = folder / "refuses"
    program.write_text(f"#!{sys.executable}\nimport sys; print('the port is taken'); sys.exit({EXIT_USAGE})\n")
    program.chmod(0o755)
    return str(program)


def poll(supervisor: BalancerSupervisor, launcher: LocalLauncher) -> bool:
    """Poll as the controller does. Return true if the balancer has ended."""
    children, exits = launcher.poll()
    for ended in exits:
        supervisor.on_exit(ended)
    supervisor.ensure_running(next(iter(children), None), time.monotonic())
    return bool(exits)


def test_balancer_that_cannot_start_raises(tmp_path: Path) -> None:
    launcher = LocalLauncher(settings(tmp_path), refuses(tmp_path))
    launcher.prepare()
    supervisor = BalancerSupervisor(launcher, 5.0)
    with pytest.raises(BalancerStartupError, match="the port is taken"):
        wait_until(lambda: poll(supervisor, launcher), "its end")


@pytest.mark.parametrize("is_polled", [True, False])
def test_failed_start_after_adopted_balancer_is_retried(tmp_path: Path, python: str, is_polled: bool) -> None:
    first = LocalLauncher(settings(tmp_path), python)
    first.prepare()
    first.start_balancer()
    try:
        log = log_dir(tmp_path / "data") / "loadbalancer.log"
        wait_until(lambda: log.exists() and log.read_text().endswith("\n"), "it is up")
        launcher = LocalLauncher(settings(tmp_path), refuses(tmp_path))
        assert [child.id for child in launcher.prepare()[0]] == ["loadbalancer"]
        supervisor = BalancerSupervisor(launcher, 5.0)
        if is_polled:
            poll(supervisor, launcher)
        first.kill("loadbalancer")
        wait_until(lambda: poll(supervisor, launcher), "the end of the adopted one")
        wait_until(lambda: poll(supervisor, launcher), "the end of the one in its place")
        assert supervisor.has_served
    finally:
        end_all(first)
