"""Commands for a running server, with real programs: scaling, reload, rolling updates, signals, status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from configs.paths import internal_token
from scripts.harness.balancer import sim
from scripts.harness.instance import TIMES, Instance
from scripts.harness.processes import PATIENCE_S, ROOT, child_process, text_of

CALM = {
    "policy": "queue_depth",
    "interval_s": 0.5,
    "min_workers": 2,
    "max_workers": 4,
    "scale_up_at": 1000,
    "scale_down_at": 0,
}
#: Makes the terminal on standard input the controlling terminal, as a shell does.
OWN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


Start = Callable[..., Instance]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Instance] = []

    def one(**config: Any) -> Instance:
        made.append(Instance(tmp_path / "a", config))
        return made[-1]

    yield one
    for instance in made:
        instance.end()


def command(instance: Instance, *words: str) -> subprocess.CompletedProcess[str]:
    options = [sys.executable, "-m", "controller", *words, "--data-dir", str(instance.folder)]
    return subprocess.run(options, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def fetched(instance: Instance, path: str, **query: str) -> Any:
    headers = {"authorization": f"Bearer {internal_token(instance.folder)}"}
    try:
        answer = httpx.get(f"{instance.url}/internal/{path}", headers=headers, params=query, timeout=PATIENCE_S)
    except httpx.TransportError:
        return None
    return answer.json() if answer.is_success else None


def decisions(instance: Instance) -> list[Any]:
    return list((fetched(instance, "decisions") or {"decisions": []})["decisions"])


def configure(instance: Instance, **changes: Any) -> None:
    """Change the model `m` in the configuration file."""
    tree = yaml.safe_load(instance.config.read_text())
    tree["models"]["m"] |= changes
    instance.config.write_text(yaml.safe_dump(tree))


def until_reported(instance: Instance, condition: Callable[[Any], object] = bool) -> None:
    """Wait for a report of the controller that satisfies the condition."""

    def is_reported() -> bool:
        report = fetched(instance, "controller")
        return report is not None and bool(condition(report))

    instance.until(is_reported, "the controller's report")


async def test_reload_replaces_workers_without_failed_requests(start: Start) -> None:
    instance = start(models={"m": sim(t0_s=0.01, t1_s=0.002, scaling=CALM)})
    before = {worker.worker for worker in await asyncio.to_thread(instance.until_workers, 2)}
    await asyncio.to_thread(until_reported, instance)
    # Workers read the batch size, the balancer the queue length, the controller the bounds.
    tree = yaml.safe_load(instance.config.read_text()) | {"queue": {"max_tasks": 2000}}
    tree["models"]["m"] |= {"max_batch_size": 3, "scaling": CALM | {"max_workers": 5}}
    instance.config.write_text(yaml.safe_dump(tree))
    updated, minimum, maximum = asyncio.Event(), 9, 0
    statuses: list[int] = []

    async def user(client: httpx.AsyncClient) -> None:
        while not updated.is_set():
            body = {"prompt": "a seven", "num_inference_steps": 20}
            statuses.append((await client.post(f"{instance.url}/predict", json=body)).status_code)

    async def operator() -> None:
        nonlocal minimum, maximum
        done = await asyncio.to_thread(command, instance, "reload")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "done: models.m.scaling.max_workers: 4 -> 5",
            "being replaced, one at a time: models.m.max_batch_size: 4 -> 3",
            "needs a restart of the server: queue.max_tasks: 1024 -> 2000",
        ]
        deadline = time.monotonic() + PATIENCE_S
        while not updated.is_set():
            assert time.monotonic() < deadline, instance.output()
            snapshot = await asyncio.to_thread(instance.snapshot)
            # Also those that a busy machine lets wait: nothing has come from them for three heartbeats.
            now = [worker for worker in snapshot.workers if worker.slots] if snapshot is not None else []
            if not now:  # the balancer did not answer in time
                continue
            minimum, maximum = min(minimum, len(now)), max(maximum, len(now))
            if len(now) == 2 and not before & {worker.worker for worker in now}:
                updated.set()

    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        await asyncio.gather(operator(), *(user(client) for _ in range(6)))
    assert set(statuses) == {200}
    assert minimum == 2, "at least min_workers during the update"
    assert maximum <= 3, "at most one more during the update"
    assert {worker.slots for worker in instance.workers()} <= {3, 4, 5}, "batches of 3, and post-processing"
    lines = [line for line in instance.output().splitlines() if "it replaces" in line or "draining" in line]
    assert ["starting" in line for line in lines] == [True, False, True, False]
    until_reported(instance, lambda report: report["models"][0]["max_workers"] == 5)
    until_reported(instance, lambda report: len({replica["generation"] for replica in report["replicas"]}) == 1)


def test_one_worker_is_drained_and_another_restarted(start: Start) -> None:
    instance = start(models={"m": sim(scaling=CALM | {"max_workers": 3})})
    drained, other = sorted(worker.worker for worker in instance.until_workers(2))
    assert "drain worker" in command(instance, "drain", drained).stdout
    instance.until(lambda: drained not in {worker.worker for worker in instance.workers()}, "the end of a worker")
    instance.until_workers(2)
    assert command(instance, "restart", other).stdout == f"being replaced, one at a time: {other}\n"
    instance.until(lambda: other not in {worker.worker for worker in instance.workers()}, "the end of the other")
    instance.until_workers(2)
    unknown = command(instance, "drain", "nobody")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("the controller runs no worker that is named nobody; its workers: ")


def test_invalid_configuration_changes_nothing_and_is_explained(start: Start) -> None:
    instance = start(models={"m": sim(scaling=CALM)})
    before = {worker.pid for worker in instance.until_workers(2)}
    until_reported(instance)
    good = instance.config.read_text()
    configure(instance, max_batch_size=0)
    refused = command(instance, "reload")
    assert refused.returncode == 1
    assert "the configuration is rejected, and nothing has changed" in refused.stderr
    assert f"{instance.config}:" in refused.stderr
    assert "models.m.max_batch_size = 0: must be greater than or equal to 1" in refused.stderr
    instance.process.send_signal(signal.SIGHUP)
    instance.until(lambda: "nothing has changed" in instance.output(), "the rejection after SIGHUP")
    instance.config.write_text(good)
    unchanged = command(instance, "reload")
    assert (unchanged.returncode, unchanged.stdout) == (0, "nothing has changed\n")
    assert httpx.post(f"{instance.url}/predict", json={"prompt": "x"}, timeout=PATIENCE_S).status_code == 200
    assert {worker.pid for worker in instance.until_workers(2)} == before


def test_crash_of_new_worker_stops_rolling_update(start: Start, tmp_path: Path) -> None:
    instance = start(models={"m": sim(scaling=CALM)}, workers=TIMES)
    before = {worker.pid for worker in instance.until_workers(2)}
    until_reported(instance)
    good = instance.config.read_text()
    configure(instance, sim=sim()["sim"] | {"load_s": 600.0})
    tree = yaml.safe_load(instance.config.read_text())
    tree["workers"]["start_timeout_s"] = 1.0
    instance.config.write_text(yaml.safe_dump(tree))
    assert command(instance, "reload").returncode == 0

    until_reported(instance, lambda report: "stopped by a crash" in report["models"][0]["rolling_update"])
    assert {worker.pid for worker in instance.until_workers(2)} == before
    assert "stopped by a crash" in command(instance, "status").stdout
    instance.config.write_text(good)
    configure(instance, max_batch_size=3)
    assert command(instance, "reload").returncode == 0, "it is tried again"
    instance.until(lambda: not before & {w.pid for w in instance.workers()}, "new workers")
    instance.until_workers(2)


def test_override_and_pause_survive_controller_restart(start: Start) -> None:
    instance = start(models={"m": sim(scaling=CALM | {"min_workers": 1})})
    instance.until_workers(1)
    until_reported(instance)
    done = command(instance, "scale", "m", "3", "--hold", "1h")
    assert (done.returncode, done.stdout) == (0, "done: scale model m workers 3 hold_s 3600.0\n")
    instance.until_workers(3)
    assert command(instance, "pause").returncode == 0
    for words, status, message in (
        (("scale", "m", "5"), 1, "Invalid value for 'workers': 5. Must be between min_workers (1) and max_workers (4)"),
        (("scale", "x", "1"), 1, "The model 'x' does not exist. Served: 'm'."),
        (("scale", "m", "2", "--hold", "soon"), 2, "soon is not a duration; write it as 90s, 10m, 2h or 1d"),
        (("reload", "x"), 1, "The model 'x' does not exist"),
    ):
        refused = command(instance, *words)
        assert refused.returncode == status
        assert message in refused.stderr
    # Both programs die; overrides and decisions remain.
    instance.until(
        lambda: ("override", 3) in {(one["trigger"], one["desired"]) for one in decisions(instance)}, "an order"
    )
    made = decisions(instance)
    instance.process.kill()
    instance.process.wait()
    instance.start()
    instance.until(lambda: "scaling is paused by a command" in instance.output(), "the restored pause")
    [balancer] = [p for p in instance.children() if "loadbalancer" in " ".join(p.cmdline())]
    balancer.kill()

    def is_restored(report: Any) -> bool:
        return report["paused_since"] is not None and report["models"][0]["override"]["workers"] == 3

    until_reported(instance, is_restored)
    instance.until_workers(3)
    assert command(instance, "resume").returncode == 0
    until_reported(instance, lambda report: report["models"][0]["override"] is None)
    instance.until(lambda: bool(decisions(instance)), "a decision")
    assert min(one["number"] for one in decisions(instance)) > max(one["number"] for one in made), "numbers continue"


def test_status_shows_all_parts(start: Start) -> None:
    instance = start(models={"m": sim(scaling=CALM)})
    names = [worker.worker for worker in instance.until_workers(2)]
    until_reported(instance, lambda report: {replica["worker"] for replica in report["replicas"]} == set(names))
    instance.until(lambda: any(decision["desired"] == 2 for decision in decisions(instance)), "the first decision")
    shown = command(instance, "status")
    assert shown.returncode == 0, shown.stderr
    for text in (instance.url, "Models", "Workers", "Devices", "Last decisions", "0 -> 2", "min_workers is 2", *names):
        assert text in shown.stdout
    status = json.loads(command(instance, "status", "--json").stdout)
    assert {replica["worker"] for replica in status["controller"]["replicas"]} == set(names)
    assert status["decisions"][-1]["desired"] == 2
    by_url = [sys.executable, "-m", "controller", "status", "--url", instance.url]
    key = {"MUSTER_KEY": internal_token(instance.folder)}
    found = subprocess.run(by_url, cwd=ROOT, env=os.environ | key, capture_output=True, timeout=PATIENCE_S, check=False)
    assert found.returncode == 0
    unknown = subprocess.run(by_url, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (unknown.returncode, "needs the internal token or an API key" in unknown.stderr) == (1, True)
    instance.process.send_signal(signal.SIGINT)
    instance.process.wait(PATIENCE_S)
    gone = command(instance, "status")
    assert gone.returncode == 1
    assert f"no server can be reached at {instance.url}" in gone.stderr


@pytest.mark.parametrize("words", [["status"], ["scale", "m", "1"], ["pause"], ["resume"], ["reload"]])
def test_command_without_server_is_rejected(tmp_path: Path, words: list[str]) -> None:
    options = [sys.executable, "-m", "controller", *words, "--data-dir", str(tmp_path / "empty")]
    done = subprocess.run(options, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert f"no server has run with --data-dir {tmp_path / 'empty'}" in done.stderr
    assert not (tmp_path / "empty").exists()


def test_sighup_reloads_unless_terminal_is_closed(start: Start) -> None:
    instance = start(models={"m": sim(scaling=CALM | {"min_workers": 1})})
    instance.until_workers(1)
    # Without a terminal, as a service.
    configure(instance, scaling=CALM | {"min_workers": 2})
    instance.process.send_signal(signal.SIGHUP)
    instance.until_workers(2)
    instance.until_logged("models.m.scaling.min_workers: 1 -> 2")
    instance.process.send_signal(signal.SIGINT)
    instance.process.wait(PATIENCE_S)
    # With an open controlling terminal.
    master, terminal = os.openpty()
    try:
        instance.start(sys.executable, "-c", OWN_TERMINAL, stdin=terminal)
        os.close(terminal)
        instance.until_workers(2)
        configure(instance, scaling=CALM | {"min_workers": 3})
        instance.process.send_signal(signal.SIGHUP)
        instance.until_workers(3)
    finally:
        os.close(master)
    # The kernel sends SIGHUP when the terminal is closed.
    instance.process.wait(PATIENCE_S)
    assert instance.children() == []


def fill(pipe: int) -> None:
    """Write to the pipe until it takes no more."""
    same = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while os.write(same, b"x" * 4096):
            pass
    os.close(same)


@pytest.mark.parametrize("reader", ["ends", "stops reading"])
def test_reader_of_output_decides_nothing(start: Start, reader: str) -> None:
    instance = start(models={"m": sim(scaling=CALM)})
    instance.process.kill()
    instance.process.wait(PATIENCE_S)
    reading, writing = os.pipe()
    if reader == "stops reading":
        fill(writing)
    instance.start(stdout=writing, stderr=writing)
    os.close(writing)
    if reader == "ends":
        assert os.read(reading, 1)
        os.close(reading)
    instance.until_workers(2)
    instance.process.send_signal(signal.SIGINT)
    assert instance.process.wait(PATIENCE_S) == 0
    assert instance.children() == []
    if reader == "stops reading":
        os.close(reading)


def test_interrupt_of_a_pipeline_stops_everything(start: Start, tmp_path: Path) -> None:
    """Ctrl-C in `serve | tee file` reaches both programs."""
    instance = start(models={"m": sim(scaling=CALM)})
    instance.process.kill()
    instance.process.wait(PATIENCE_S)
    copy = tmp_path / "copy"
    with child_process(["tee", str(copy)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as tee:
        assert tee.stdin is not None
        instance.start(stdout=tee.stdin, stderr=tee.stdin)
        tee.stdin.close()
        instance.until(lambda: "Muster is ready" in text_of(copy), "the message in the copy")
        tee.send_signal(signal.SIGINT)
        instance.process.send_signal(signal.SIGINT)
        assert instance.process.wait(PATIENCE_S) == 0
    assert instance.children() == []
