"""`python -m controller` with a balancer, workers with the simulated engine, and signals."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from scripts.harness.balancer import sim
from scripts.harness.instance import TIMES, Instance
from scripts.harness.processes import PATIENCE_S, ROOT, child_process, free_port, wait_until

QUICK = {
    "policy": "queue_depth",
    "interval_s": 0.5,
    "scale_up_at": 4,
    "scale_down_at": 1,
    "scale_down_hold_s": 2,
    "scale_down_cooldown_s": 0.5,
}

Start = Callable[..., Instance]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Instance] = []

    def one(*options: str, name: str = "a", **config: Any) -> Instance:
        made.append(Instance(tmp_path / name, config, *options))
        return made[-1]

    yield one
    for instance in made:
        instance.end()


async def load(url: str, finished: asyncio.Event, users: int, steps: int = 40) -> list[int]:
    """Send requests by several users, at least two each, until the event is set. Return the statuses of all answers."""
    statuses: list[int] = []

    async def user(client: httpx.AsyncClient) -> None:
        sent = 0
        while sent < 2 or not finished.is_set():
            sent += 1
            body = {"prompt": "a seven", "num_inference_steps": steps}
            statuses.append((await client.post(f"{url}/predict", json=body)).status_code)

    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(user(client) for _ in range(users)))
    return statuses


def test_serves_and_stops_without_remaining_processes(start: Start) -> None:
    instance = start("--min-workers", "2", models={"m": sim()})
    instance.until(lambda: "Muster is ready at" in instance.output(), "the welcome")
    instance.until_workers(2)
    children = instance.children()
    names = [" ".join(process.cmdline()) for process in children]
    assert sorted(name.split()[1] for name in names) == ["loadbalancer", "worker", "worker"]
    # The printed curl command works.
    [command] = [line.strip() for line in instance.output().splitlines() if line.strip().startswith("curl")]
    answer = subprocess.run(command, shell=True, capture_output=True, timeout=PATIENCE_S, check=True)
    assert b'"b64_json":"iVBOR' in answer.stdout
    instance.process.send_signal(signal.SIGTERM)
    assert instance.process.wait(PATIENCE_S) == 0
    assert "killing" not in instance.output(), "all processes stop in time by themselves"
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in children)
    assert len(list((instance.folder / "logs").glob("m-*.log"))) == 2


@pytest.mark.parametrize("first", ["controller", "loadbalancer", "worker"])
async def test_signal_to_all_processes_loses_no_request(start: Start, first: str) -> None:
    """As a service manager sends it, in any order."""
    # A stopped worker gets tasks for three heartbeats. The times that processes have suffice on a busy machine.
    life = TIMES | {"heartbeat_s": 30, "drain_grace_s": 60}
    model = sim(t0_s=0.02, t1_s=0.0, max_batch_size=1)
    instance = start("--min-workers", "2", models={"m": model}, workers=life, server={"shutdown_s": 8})
    workers = instance.until_workers(2)
    programs = {process.pid: process.cmdline()[1] for process in instance.children()}
    programs[instance.process.pid] = "controller"
    body = {"prompt": "a seven", "num_inference_steps": 10}

    def all_wait() -> bool:
        snapshot = instance.snapshot()
        return snapshot is not None and [(m.queued, m.running) for m in snapshot.models] == [(2, 2)]

    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        requests = [asyncio.create_task(client.post(f"{instance.url}/predict", json=body)) for _ in range(4)]
        await asyncio.to_thread(instance.until, all_wait, "a task on each worker, and two in the queue")
        for worker in workers:
            os.kill(worker.pid, signal.SIGCONT)
        for pid in sorted(programs, key=lambda pid: programs[pid] != first):
            os.kill(pid, signal.SIGTERM)
            await asyncio.sleep(0.02)  # else the last one could have its signal before the first one
        assert [answer.status_code for answer in await asyncio.gather(*requests)] == [200] * 4
    assert instance.process.wait(PATIENCE_S) == 0
    assert instance.children() == []
    assert "killing" not in instance.output()


def test_signal_during_imports_ends_the_controller(tmp_path: Path) -> None:
    """The first process of a container has no default action for a signal."""
    with child_process([sys.executable, "-m", "controller", "--data-dir", str(tmp_path)], cwd=ROOT) as process:
        status = Path(f"/proc/{process.pid}/status")
        handled = re.compile(r"SigCgt:\s*([0-9a-f]+)")

        def has_handler() -> bool:
            found = handled.search(status.read_text())
            return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)

        wait_until(has_handler, "a handler")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert not (tmp_path / "run").exists()


def test_ctrl_c_ends_a_command_without_a_traceback() -> None:
    # Where the tests run in the background of a shell, SIGINT is ignored.
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    words = ["-m", "controller", "simulate", "--trace", "synthetic:poisson?rate=0.5&hours=8000"]
    with child_process([sys.executable, "-c", code, sys.executable, *words], cwd=ROOT) as process:
        status = Path(f"/proc/{process.pid}/status")
        handled = re.compile(r"SigCgt:\s*([0-9a-f]+)")

        def has_begun() -> bool:
            found = handled.search(status.read_text())
            return found is not None and bool(int(found[1], 16) >> (signal.SIGTERM - 1) & 1)

        wait_until(has_begun, "the handler of SIGTERM, which is the first thing of a command")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 128 + signal.SIGINT


async def test_burst_scales_up_then_down_without_failures(start: Start) -> None:
    instance = start(models={"m": sim(t0_s=0.01, t1_s=0.005, scaling=QUICK | {"max_workers": 4})})
    await asyncio.to_thread(instance.until_workers, 1)
    finished = asyncio.Event()
    burst = asyncio.create_task(load(instance.url, finished, users=40))
    await asyncio.to_thread(instance.until_workers, 4)
    finished.set()
    statuses = await burst
    await asyncio.to_thread(instance.until_workers, 1)
    assert set(statuses) == {200}
    assert len(statuses) > 40
    decisions = re.findall(
        r"m: (\d) -> (\d) workers: load [\d.]+ \(\d+ queued \+ \d+ running / \d workers?\) has been", instance.output()
    )
    assert [pair for pair in decisions if pair[0] < pair[1]][:3] == [("1", "2"), ("2", "3"), ("3", "4")]
    assert [pair for pair in decisions if pair[0] > pair[1]][-3:] == [("4", "3"), ("3", "2"), ("2", "1")]


async def test_worker_killed_under_load_is_replaced_at_once(start: Start) -> None:
    scaling = {"interval_s": 3600, "min_workers": 2, "max_workers": 2}
    instance = start(models={"m": sim(t0_s=0.01, t1_s=0.002, scaling=scaling)})
    workers = await asyncio.to_thread(instance.until_workers, 2)
    before = {worker.worker for worker in workers}
    finished = asyncio.Event()
    flood = asyncio.create_task(load(instance.url, finished, users=12))
    victim = workers[0]

    def is_running() -> bool:
        return any(worker.running for worker in instance.workers() if worker.worker == victim.worker)

    await asyncio.to_thread(instance.until, is_running, "tasks on the worker")
    os.kill(victim.pid, signal.SIGKILL)

    def replaced() -> bool:
        now = {worker.worker for worker in instance.workers()}
        return len(now) == 2 and victim.worker not in now

    await asyncio.to_thread(instance.until, replaced, "a new worker")
    finished.set()
    assert set(await flood) == {200}
    after = await asyncio.to_thread(instance.until_workers, 2)
    assert len({worker.worker for worker in after} - before) == 1
    instance.until_logged(f"worker {victim.worker} on {victim.device} died (signal 9)")


def test_dead_balancer_is_restarted_and_workers_reconnect(start: Start) -> None:
    instance = start("--min-workers", "2", models={"m": sim()})
    before = {worker.pid for worker in instance.until_workers(2)}
    [balancer] = [p for p in instance.children() if "loadbalancer" in " ".join(p.cmdline())]
    balancer.kill()
    instance.until_logged("the balancer died (signal 9)")
    instance.until(lambda: {worker.pid for worker in instance.workers()} == before, "the same workers again")
    assert httpx.post(f"{instance.url}/predict", json={"prompt": "x"}, timeout=PATIENCE_S).status_code == 200


def test_restarted_controller_adopts_processes(start: Start) -> None:
    instance = start("--min-workers", "2", models={"m": sim()})
    instance.until(lambda: "Muster is ready at" in instance.output(), "the welcome")
    instance.until_workers(2)
    before = {process.pid for process in instance.children()}
    instance.process.kill()
    instance.process.wait()
    assert httpx.post(f"{instance.url}/predict", json={"prompt": "x"}, timeout=PATIENCE_S).status_code == 200
    instance.start()
    instance.until(lambda: "adopting" in instance.output(), "the adoption")
    instance.until(lambda: instance.output().count("Muster is ready at") == 2, "the second welcome")
    instance.next_reports(3)  # a wrong start would be made in the first control loop
    assert {process.pid for process in instance.children()} == before
    instance.process.send_signal(signal.SIGINT)
    assert instance.process.wait(PATIENCE_S) == 0
    assert instance.children() == []


def test_processes_with_other_configuration_are_replaced(start: Start) -> None:
    instance = start(models={"m": sim()})
    instance.until_workers(1)
    before = {process.pid for process in instance.children()}
    instance.process.kill()
    instance.process.wait()
    instance.port = free_port()
    instance.start()
    instance.until(lambda: "their configuration differs" in instance.output(), "the discovery")
    instance.until_workers(1)  # asked for at the new port
    instance.until(lambda: not before & {process.pid for process in instance.children()}, "the end of the old ones")
    assert httpx.post(f"{instance.url}/predict", json={"prompt": "x"}, timeout=PATIENCE_S).status_code == 200


def test_worker_stopped_by_operator_is_not_a_crash(start: Start) -> None:
    instance = start(models={"m": sim(scaling={"interval_s": 3600})})
    [worker] = instance.until_workers(1)
    os.kill(worker.pid, signal.SIGTERM)
    instance.until(lambda: [w.worker for w in instance.workers()] not in ([], [worker.worker]), "a new worker")
    instance.until_logged(f"worker {worker.worker} has exited (exit status 0)")
    assert "crash" not in instance.output()


def test_every_simulated_model_gets_workers(start: Start) -> None:
    greedy = {"min_workers": 3, "max_workers": 3}
    instance = start(models={"a": sim(scaling=greedy), "b": sim(scaling=greedy)})
    assert sorted(w.device for w in instance.until_workers(6)) == [f"sim:{n}" for n in range(6)]


def test_hanging_balancer_does_not_block_shutdown(start: Start) -> None:
    instance = start("--min-workers", "2", models={"m": sim()})
    instance.until_workers(2)
    children = instance.children()
    [balancer] = [p for p in children if "loadbalancer" in " ".join(p.cmdline())]
    balancer.suspend()
    instance.process.send_signal(signal.SIGTERM)
    assert instance.process.wait(PATIENCE_S) == 0
    assert instance.children() == []
    assert "killing loadbalancer: it did not stop in time" in instance.output()


def test_second_signal_stops_at_once(start: Start) -> None:
    instance = start(models={"m": sim(t0_s=0.2)}, server={"shutdown_s": 8})
    [worker] = instance.until_workers(1)
    request = subprocess.Popen(
        ["curl", "-s", f"{instance.url}/predict", "-d", '{"prompt": "x", "num_inference_steps": 1000}'],
        stdout=subprocess.DEVNULL,
    )
    try:
        instance.until(lambda: any(w.running for w in instance.workers()), "a request under way")
        instance.process.send_signal(signal.SIGINT)
        instance.until(lambda: "stopping ..." in instance.output(), "the first signal")
        instance.process.send_signal(signal.SIGINT)
        assert instance.process.wait(PATIENCE_S) == 0
    finally:
        request.kill()
        request.wait()
    assert f"killing {worker.worker}: an immediate stop was requested" in instance.output()
    assert instance.children() == []


def test_closed_terminal_stops_all_processes(start: Start) -> None:
    instance = start(models={"m": sim()})
    instance.until_workers(1)
    instance.process.send_signal(signal.SIGINT)
    assert instance.process.wait(PATIENCE_S) == 0
    master, terminal = os.openpty()
    instance.start(stdout=terminal, stderr=terminal)
    os.close(terminal)
    instance.until_workers(1)
    os.close(master)
    instance.process.send_signal(signal.SIGHUP)
    instance.process.wait(PATIENCE_S)
    assert instance.children() == []


def test_sigint_stops_shell_background_job(start: Start) -> None:
    instance = start(models={"m": sim()})
    instance.process.send_signal(signal.SIGTERM)
    instance.process.wait(PATIENCE_S)
    # A shell starts a background job with SIGINT ignored.
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    instance.start(sys.executable, "-c", ignoring)
    instance.until_workers(1)
    instance.process.send_signal(signal.SIGINT)
    assert instance.process.wait(PATIENCE_S) == 0
    assert instance.children() == []


def test_nohup_ignores_sighup(start: Start) -> None:
    instance = start(models={"m": sim()})
    instance.process.send_signal(signal.SIGTERM)
    instance.process.wait(PATIENCE_S)
    instance.start("nohup")
    [worker] = instance.until_workers(1)
    instance.process.send_signal(signal.SIGHUP)
    os.kill(worker.pid, signal.SIGKILL)
    instance.until(lambda: "died (signal 9)" in instance.output(), "the next poll")
    instance.until_workers(1)


@pytest.mark.parametrize("file", ["", "nested/"])
def test_unusable_data_dir_is_rejected(tmp_path: Path, file: str) -> None:
    (tmp_path / "file").write_text("a file")
    command = [sys.executable, "-m", "controller", "--data-dir", str(tmp_path / "file" / file)]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert refused.returncode == 2
    assert re.search(r"cannot start: data_dir \S+ cannot be used", refused.stderr)
    assert "Traceback" not in refused.stderr


def test_address_of_another_machine_is_rejected(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "controller", "--data-dir", str(tmp_path), "--host", "192.0.2.1"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert refused.returncode == 2
    assert refused.stderr == "cannot start: server.host 192.0.2.1 is not an address of this machine; try --host\n"


def test_gpu_that_is_asked_for_is_never_replaced_by_a_cpu(tmp_path: Path) -> None:
    own = os.environ | {"CUDA_VISIBLE_DEVICES": "MIG-00000000-0000-0000-0000-000000000000"}
    command = [sys.executable, "-m", "controller", "--data-dir", str(tmp_path)]
    refused = subprocess.run(
        command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert refused.returncode == 2
    assert "cannot start: CUDA_VISIBLE_DEVICES names MIG-" in refused.stderr
    assert "MUSTER_DEVICES__USE=cpu" in refused.stderr


def test_model_with_a_truncated_file_says_so_and_heals(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(ROOT / "worker" / "builtin" / "digits", folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    os.truncate(weights, 4_000_000)
    broken: dict[str, Any] = {"path": str(folder), "defaults": {"size": "64x64", "steps": 2}}
    broken |= {"limits": {"min_side": 32}, "max_batch_size": 1, "warm_up": {"measure_s": 0}}
    instance = start(models={"broken": broken, "good": sim()})

    def request(model: str) -> httpx.Response:
        return httpx.post(f"{instance.url}/predict", json={"prompt": "x", "model": model}, timeout=PATIENCE_S)

    instance.until(lambda: len(instance.workers()) == 1, "the good model's worker")
    queued = request("broken")
    assert (queued.status_code, queued.json()["error"]["code"]) == (503, "model_cannot_start"), queued.text
    assert "is cut short: 4,000,000 of 4,793,760 bytes; download it again" in queued.text
    assert request("broken").status_code == 503, "at once"
    assert request("good").status_code == 200
    ready = httpx.get(f"{instance.url}/readyz", timeout=PATIENCE_S)
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "model_cannot_start")
    card = httpx.get(f"{instance.url}/v1/models/broken", timeout=PATIENCE_S).json()
    assert "is cut short" in card["cannot_start"]
    assert re.search(r"cannot start: .* cut short: .* next try in \d+ s", instance.output())
    assert "Traceback" not in instance.output()
    weights.write_bytes(whole)
    instance.until(instance.is_ready, "the next try")
    assert request("broken").status_code == 200


def test_slow_start_is_killed_and_counts_as_crash(start: Start) -> None:
    slow = sim()
    slow["sim"]["load_s"] = 600.0
    instance = start(models={"m": slow}, workers=TIMES | {"start_timeout_s": 1.0})
    instance.until(lambda: "crash 1 in a row" in instance.output(), "the count")
    instance.until_logged("not ready 1 s after its start (workers.start_timeout_s)")


def test_two_instances_need_own_data_dir_and_port(start: Start) -> None:
    first, second = start(models={"m": sim()}), start(models={"m": sim()}, name="b")
    assert first.until_workers(1)[0].pid != second.until_workers(1)[0].pid
    for options, message in (
        (["--data-dir", str(first.folder), "--port", str(free_port())], "another controller runs with --data-dir"),
        (["--data-dir", str(first.folder.parent / "c"), "--port", str(first.port)], f"server.port {first.port}"),
    ):
        command = [sys.executable, "-m", "controller", "--config", str(first.config), *options]
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert refused.returncode == 2
        assert message in refused.stderr


@pytest.mark.parametrize("program", ["controller", "loadbalancer", "worker"])
def test_help_lists_options(program: str) -> None:
    command = [sys.executable, "-m", program, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    assert f"python -m {program}" in shown
    assert "--data-dir" in shown
    assert "--config FILE" in shown


def test_check_and_print_config(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("models: {m: {max_batch_size: 0}}")

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "controller", *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    refused = run("--check-config", str(bad))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"{bad}:1: models.m.max_batch_size = 0: must be greater than or equal to 1" in refused.stderr
    good = run("--check-config", str(ROOT / "configs" / "default.yaml"))
    assert (good.returncode, "valid; serves digits" in good.stdout) == (0, True)
    printed = run("--print-config", "--port", "9001", "--min-workers", "3")
    assert yaml.safe_load(printed.stdout)["server"]["port"] == 9001
    assert yaml.safe_load(printed.stdout)["min_workers"] == 3


def test_stuck_worker_is_replaced(start: Start) -> None:
    workers = TIMES | {"stuck_min_s": 2.0}
    once = {"max_attempts": 1}
    instance = start("--min-workers", "1", "--max-workers", "1", workers=workers, queue=once, models={"m": sim()})
    [before] = instance.until_workers(1)
    body = {"prompt": "sim:stuck", "timeout_s": 60}
    with httpx.Client(timeout=PATIENCE_S) as client:
        answer = client.post(f"{instance.url}/predict", json=body)
        assert answer.status_code == 500
        assert "1 worker died or hung while it ran this task" in answer.json()["error"]["message"]
        assert client.post(f"{instance.url}/predict", json={"prompt": "x"}).status_code == 200
    instance.until_logged(f"killing worker {before.worker}: it is stuck: it sends heartbeats, but completes no step")
