"""Workers over TCP: with an allowed key they serve; without one they are rejected and counted."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
import zmq

from configs.cli import EXIT_USAGE
from configs.paths import internal_token, worker_address
from loadbalancer.access import keys_cli
from loadbalancer.access.startup_checks import load_server_keys
from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S, Process, free_port, launch, stop, wait_until
from scripts.harness.tcp_proxy import TcpProxy
from wire.agents import AgentAck, AgentHello, encode_agent_message
from wire.codec import WorkerEnvelope, decode_for_worker, encode
from wire.curve import BadKey, WorkerKey, new_pair, read_agent_key, read_worker_key, secure_client
from wire.messages import PROTOCOL, Bye, Capacity, Hello
from worker.balancer_client import BalancerClient

MAX_PER_KEY = 3
LIFE: dict[str, Any] = {"heartbeat_s": 0.2, "lost_after_s": 3.0, "max_per_key": MAX_PER_KEY}
DRAW = {"prompt": "a seven"}


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server(tmp_path: Path, port: int) -> Iterator[Server]:
    """A balancer without workers that listens on TCP, with the most verbose log."""
    life = LIFE | {"listen": f"tcp://127.0.0.1:{port}"}
    with running(tmp_path / "data", {"sim": sim()}, 0, life=life, log_level="debug") as server:
        yield server
        assert server.balancer.poll() is None, server.logs()
        assert stop(server.balancer) == 0, "it stops cleanly"
        log = server.log("loadbalancer")
        assert "Traceback" not in log
        assert load_server_keys(server.data_dir).secret not in log


def add_worker(server: Server, name: str) -> Path:
    file = server.data_dir / f"{name}.key"
    assert keys_cli.main(["--data-dir", str(server.data_dir), "add-worker", name, str(file)]) == 0
    return file


@contextlib.contextmanager
def joined(server: Server, port: int, name: str, key_file: Path) -> Iterator[Process]:
    """Run a worker as on another machine: with a data directory of its own."""
    apart = server.data_dir.parent / name
    apart.mkdir()
    where = ["--join", f"tcp://127.0.0.1:{port}", "--key-file", str(key_file)]
    options = ["--config", str(server.config), "--id", name, "--device", "sim:0", *where]
    process = launch("worker", apart, *options, log=name)
    try:
        yield process
        assert read_worker_key(key_file).secret not in (apart / f"{name}.log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE_S)


def events(server: Server) -> dict[str, float]:
    lines = httpx.get(f"{server.base_url}/metrics", timeout=PATIENCE_S).text.splitlines()
    counters = [
        line.removeprefix("muster_events_total").split() for line in lines if line.startswith("muster_events_tot")
    ]
    return {label.split('"')[1]: float(value) for label, value in counters}


def predict(server: Server) -> httpx.Response:
    return httpx.post(f"{server.base_url}/predict", json=DRAW, timeout=PATIENCE_S)


def test_worker_serves_until_its_key_is_revoked(server: Server, port: int) -> None:
    with joined(server, port, "far", add_worker(server, "far")) as far:
        wait_until(lambda: server.ready_workers() == ["far"], "the worker that joins over TCP")
        assert predict(server).status_code == 200
        # A worker on this machine needs no key, and both serve.
        near = server.start_worker("sim")
        server.wait_for_workers(near)
        assert set(server.ready_workers()) == {"far", near}
        assert keys_cli.main(["--data-dir", str(server.data_dir), "revoke-worker", "far"]) == 0
        wait_until(lambda: server.ready_workers() == [near], "the revoked worker to be lost")
        wait_until(lambda: events(server).get("revoked", 0) >= 1, "the revocation is counted")
        assert predict(server).status_code == 200
        assert far.poll() is None
        assert stop(server.workers[near]) == 0


def test_texts_go_on_after_a_connection_has_broken(tmp_path: Path) -> None:
    """Tokens on their way are lost with it: they are generated again, and the worker is not taken for a faulty one."""
    far_port = free_port()
    life = LIFE | {"lost_after_s": 120, "listen": f"tcp://127.0.0.1:{far_port}"}
    model = {"engine": "sim", "max_batch_size": 8, "sim": {"task": "text", "load_s": 0, "t0_s": 0.02}}
    ask = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "min_tokens": 200}
    with (
        running(tmp_path / "data", {"sim": model | {"warm_up": {"measure_s": 0}}}, 0, life=life) as server,
        TcpProxy(far_port) as network,
        joined(server, network.port, "far", add_worker(server, "far")) as far,
        ThreadPoolExecutor() as pool,
    ):
        wait_until(lambda: server.ready_workers() == ["far"], "the worker that joins over TCP")

        def texts(resets: int) -> list[str]:
            """Return texts with fixed seeds. While they are generated, the connection breaks so often."""
            url = f"{server.base_url}/v1/chat/completions"
            sent = [pool.submit(httpx.post, url, json=ask | {"seed": n}, timeout=PATIENCE_S) for n in range(4)]
            for _ in range(resets):
                steps = sum(worker.counters.steps for worker in server.snapshot().workers)
                wait_until(
                    lambda steps=steps: (  # type: ignore[misc]
                        all(answer.done() for answer in sent)  # on a very slow machine
                        or any(worker.counters.steps > steps + 10 for worker in server.snapshot().workers)
                    ),
                    "some steps",
                )
                network.reset()
            return [answer.result().json()["choices"][0]["message"]["content"] for answer in sent]

        assert texts(resets=2) == texts(resets=0)
        assert server.ready_workers() == ["far"]
        assert far.poll() is None
        assert events(server).get("invalid_results", 0) == 0


def send_raw(port: int, key: WorkerKey, frames: list[bytes]) -> list[bytes]:
    """Send one message with this key, and return the frames of the first answer; none within a second."""
    context = zmq.Context()
    with context.socket(zmq.DEALER) as dealer:
        secure_client(dealer, key)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send_multipart(frames)
        answer = dealer.recv_multipart() if dealer.poll(1000) else []
        dealer.close(0)
    context.term()
    return answer


def test_key_of_an_agent_is_no_key_of_a_worker(server: Server, port: int) -> None:
    file = server.data_dir / "box.key"
    assert keys_cli.main(["--data-dir", str(server.data_dir), "add-worker", "--agent", "box", str(file)]) == 0
    keys = read_agent_key(file)
    hello = AgentHello(PROTOCOL, "", "session", [])
    worker_hello: list[Any] = encode([WorkerEnvelope(Hello(PROTOCOL, "box:w", "sim", "sim:0", 1))])
    accepted = encode_agent_message(AgentAck(LIFE["heartbeat_s"]))
    wait_until(
        lambda: send_raw(port, keys.of_agent(), encode_agent_message(hello)) == accepted, "the agent's key is in force"
    )
    assert send_raw(port, keys.of_agent(), worker_hello) == []
    assert send_raw(port, keys.of_workers(), encode_agent_message(hello)) == []
    wait_until(lambda: events(server).get("malformed") == 2, "both messages to be counted")
    assert server.snapshot().workers == []
    with pytest.raises(BadKey, match="is of an agent: start it with --agent"):
        read_worker_key(file)
    with pytest.raises(BadKey, match="is of a worker"):
        read_agent_key(add_worker(server, "plain"))


def test_only_the_controller_gives_orders(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys_cli.main(["--data-dir", str(server.data_dir), "add", "root", "--scope", "admin"]) == 0
    token = capsys.readouterr().out.strip()
    orders: dict[str, Any] = {"orders": {}}
    url, admin = f"{server.base_url}/internal/agents", {"authorization": f"Bearer {token}"}

    def status() -> int:
        return httpx.post(url, json=orders, headers=admin, timeout=PATIENCE_S).status_code

    wait_until(lambda: status() != 401, "the key is in force")
    assert status() == 403
    own = {"authorization": f"Bearer {internal_token(server.data_dir)}"}
    assert httpx.post(url, json=orders, headers=own, timeout=PATIENCE_S).json()["machines"] == {}
    assert httpx.post(url, json={"orders": {"box": 1}}, headers=own, timeout=PATIENCE_S).status_code == 400


def test_worker_is_accepted_once_its_key_is_allowed(server: Server, port: int) -> None:
    early = new_pair()
    file = server.data_dir / "early.key"
    key = WorkerKey(early.public, early.secret, load_server_keys(server.data_dir).public)
    file.touch(0o600)
    file.write_bytes(msgspec.yaml.encode(key))
    with joined(server, port, "early", file) as process:
        wait_until(lambda: events(server).get("peers_unknown_key", 0) >= 1, "the unknown key to be rejected")
        wait_until(lambda: f"unknown key {early.public}" in server.log("loadbalancer"), "the log line")
        assert server.snapshot().workers == []
        allowed = server.data_dir / "curve" / "workers.yaml"
        allowed.write_bytes(msgspec.yaml.encode({"workers": {"early": {"public": early.public}}}))
        wait_until(lambda: server.ready_workers() == ["early"], "the worker that was rejected at first")
        assert predict(server).status_code == 200
        assert (server.data_dir.parent / "early" / "early.log").read_text().count("does not allow the key") == 1
        assert stop(process) == 0


def local_ports(process: Process, port: int) -> set[int]:
    """Return the worker's ends of its connections to this port."""
    connections = psutil.Process(process.pid).net_connections("tcp")
    return {each.laddr.port for each in connections if each.raddr and each.raddr.port == port}


def test_worker_reconnects_when_the_balancer_is_silent(server: Server, port: int) -> None:
    with joined(server, port, "far", add_worker(server, "far")) as far:
        wait_until(lambda: server.ready_workers() == ["far"], "the worker that joins over TCP")
        before = local_ports(far, port)
        os.kill(server.balancer.pid, signal.SIGSTOP)
        try:  # the kernel accepts connections for a stopped process
            wait_until(lambda: local_ports(far, port).isdisjoint(before), "another connection of the worker")
        finally:
            os.kill(server.balancer.pid, signal.SIGCONT)
        wait_until(lambda: server.ready_workers() == ["far"] and predict(server).is_success, "it to serve again")
        assert stop(far) == 0


def test_rejected_worker_can_be_stopped(server: Server, port: int) -> None:
    pair = new_pair()
    file = server.data_dir / "never.key"
    file.touch(0o600)
    file.write_bytes(msgspec.yaml.encode(WorkerKey(pair.public, pair.secret, load_server_keys(server.data_dir).public)))
    with joined(server, port, "never", file) as process:
        wait_until(lambda: events(server).get("peers_unknown_key", 0) >= 2, "it to try again")
        assert stop(process) == 0
    assert server.snapshot().workers == []


def test_peers_without_valid_keys_are_rejected_and_counted(server: Server, port: int) -> None:
    address, own = f"tcp://127.0.0.1:{port}", load_server_keys(server.data_dir).public
    mine, other = new_pair(), new_pair()
    hello = encode([WorkerEnvelope(Hello(PROTOCOL, "peer", "sim", "sim:0", os.getpid())), WorkerEnvelope(Capacity(4))])
    with zmq.Context() as context, contextlib.ExitStack() as stack:
        for key in (None, WorkerKey(mine.public, mine.secret, own), WorkerKey(mine.public, mine.secret, other.public)):
            dealer = stack.enter_context(context.socket(zmq.DEALER))
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.SNDTIMEO, 1000)
            if key is not None:
                secure_client(dealer, key)
            dealer.connect(address)
            dealer.send_multipart(hello)
        browser = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        browser.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
        wait_until(lambda: events(server).get("peers_unknown_key", 0) >= 1, "the unknown key to be counted")
        wait_until(lambda: events(server).get("peers_not_encrypted", 0) >= 2, "the unencrypted peers to be counted")
        assert server.snapshot().workers == []
        assert "malformed" not in events(server), "none of their messages is read"
        with joined(server, port, "far", add_worker(server, "far")):
            wait_until(lambda: server.ready_workers() == ["far"], "a worker with a key")
            assert predict(server).status_code == 200


class Impostor:
    """A peer with an allowed key that may set any identity and say Hello under any name."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], port: int, key: WorkerKey, identity: bytes) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDTIMEO, 1000)  # after a rejection there may be no connection to send over
        if identity:
            self.socket.setsockopt(zmq.ROUTING_ID, identity)
        secure_client(self.socket, key)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def say_hello(self, name: str) -> None:
        hello = Hello(PROTOCOL, name, "sim", "sim:0", os.getpid())
        self.socket.send_multipart(encode([WorkerEnvelope(hello), WorkerEnvelope(Capacity(4))]))

    def received(self, timeout_s: float) -> list[str]:
        """Names of the types of all messages until nothing comes for `timeout_s`."""
        kinds = []
        while self.socket.poll(int(1000 * timeout_s)):
            kinds += [type(envelope.message).__name__ for envelope in decode_for_worker(self.socket.recv_multipart())]
        return kinds


def allow(server: Server, context: zmq.Context[zmq.Socket[bytes]], port: int, name: str) -> WorkerKey:
    """Make a key, and wait until the balancer knows it."""
    key = read_worker_key(add_worker(server, name))

    def is_known() -> bool:
        probe = Impostor(context, port, key, b"")
        with probe.socket:
            try:
                probe.say_hello("probe")
            except zmq.Again:
                return False
            if not probe.received(0.3):
                return False
            probe.socket.send_multipart(encode([WorkerEnvelope(Bye("done"))]))
            wait_until(lambda: f"{name}:probe" not in server.ready_workers(), "the probe to leave")
            return True

    wait_until(is_known, "the new key to be known")
    return key


def test_worker_cannot_take_the_name_of_another(server: Server, port: int) -> None:
    near = server.start_worker("sim")
    with (
        zmq.Context() as context,
        contextlib.ExitStack() as stack,
        joined(server, port, "far", add_worker(server, "far")),
    ):
        evil = allow(server, context, port, "evil")
        wait_until(lambda: set(server.ready_workers()) == {"far", near}, "both workers")
        before = {worker.worker: worker.pid for worker in server.snapshot().workers}
        impostors = [Impostor(context, port, evil, name.encode()) for name in ("far", near)]
        impostors += [Impostor(context, port, evil, b"") for _ in ("far", near)]
        for impostor, name in zip(impostors, ("far", near) * 2, strict=True):
            stack.enter_context(impostor.socket)
            impostor.say_hello(name)
        assert [impostor.received(1.0) for impostor in impostors[:2]] == [[], []], "chosen identities are not served"
        wait_until(lambda: len(server.snapshot().workers) == 4, "them under names of their own key")
        after = {worker.worker: worker.pid for worker in server.snapshot().workers}
        assert after == before | {"evil:far": os.getpid(), f"evil:{near}": os.getpid()}
        for impostor in impostors[2:]:
            assert "Assign" not in impostor.received(0.1)
            impostor.socket.send_multipart(encode([WorkerEnvelope(Bye("done"))]))
        wait_until(lambda: set(server.ready_workers()) == {"far", near}, "the impostors to leave")
        assert all(predict(server).status_code == 200 for _ in range(8))
    assert stop(server.workers[near]) == 0


def test_key_named_like_a_local_worker_is_refused(server: Server, port: int) -> None:
    near = server.start_worker("sim")
    server.wait_for_workers(near)
    pid = server.snapshot().workers[0].pid
    with zmq.Context() as context:
        impostor = Impostor(context, port, allow(server, context, port, near), b"")
        with impostor.socket:
            impostor.say_hello(near)
            kinds: list[str] = []

            def is_answered() -> bool:
                kinds.extend(impostor.received(0.1))
                return len(kinds) >= 2

            wait_until(is_answered, "two answers")
            assert kinds == ["Reject"] * 2, "of the name, and of what followed without one"
    assert [(worker.worker, worker.pid) for worker in server.snapshot().workers] == [(near, pid)]
    assert predict(server).status_code == 200
    assert stop(server.workers[near]) == 0


def test_workers_of_a_key_are_bounded(server: Server, port: int) -> None:
    with zmq.Context() as context, contextlib.ExitStack() as stack:
        key = allow(server, context, port, "box")
        peers = [Impostor(context, port, key, b"") for _ in range(MAX_PER_KEY + 2)]
        for number, peer in enumerate(peers):
            stack.enter_context(peer.socket)
            peer.say_hello(f"w{number}")
        wait_until(lambda: events(server).get("workers_refused", 0) >= 2, "the refusals")
        assert len(server.snapshot().workers) == MAX_PER_KEY


def test_local_socket_needs_no_key_and_tcp_does(server: Server, port: int) -> None:
    with pytest.raises(ValueError, match="there is no key for it"):
        BalancerClient(f"tcp://127.0.0.1:{port}", "w", heartbeat_s=1.0, orphan_after_s=10.0)
    near = server.start_worker("sim")
    server.wait_for_workers(near)
    assert predict(server).status_code == 200
    assert Path(worker_address(server.data_dir).removeprefix("ipc://")).parent.stat().st_mode & 0o777 == 0o700
    server.workers[near].kill()
    # Well before `lost_after_s`: the kernel reports the end of a local process.
    wait_until(lambda: server.snapshot().workers == [], "the death of the local worker")
    wait_until(lambda: "its process has ended" in server.log("loadbalancer"), "the log line")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--join", "tcp://127.0.0.1:1"], "--join and --key-file go together"),
        (["--key-file", "none.key"], "--join and --key-file go together"),
        (["--join", "tcp://127.0.0.1:1", "--key-file", "none.key"], "none.key cannot be read"),
        (["--join", "ipc:///tmp/x", "--key-file", "none.key"], "is not tcp://HOST:PORT"),
        (["--join", "tcp://127.0.0.1:65536", "--key-file", "none.key"], "is not tcp://HOST:PORT"),
        (["--connect", "tcp://127.0.0.1:1"], "for TCP use --join and --key-file"),
    ],
)
def test_invalid_combinations_of_options_are_rejected(tmp_path: Path, options: list[str], message: str) -> None:
    process = launch("worker", tmp_path, *options, log="worker")
    assert process.wait(PATIENCE_S) == EXIT_USAGE
    assert message in (tmp_path / "worker.log").read_text()


def test_tcp_address_in_use_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = tmp_path / "config.yaml"
        config.write_text(f"models: {{m: {{engine: sim}}}}\nworkers: {{listen: 'tcp://127.0.0.1:{port}'}}\n")
        options = ["--config", str(config), "--port", str(free_port())]
        process = launch("loadbalancer", tmp_path, *options, log="loadbalancer")
        assert process.wait(PATIENCE_S) == EXIT_USAGE
    log = (tmp_path / "loadbalancer.log").read_text()
    assert f"workers.listen is not available: tcp://127.0.0.1:{port}: Address already in use" in log
