"""The scheduler's service with a worker's socket: what one turn of the loop decides leaves as one message."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
from zmq.asyncio import Context, Socket

from configs.settings import Settings
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import QueueFull, TaskCompleted, TaskEnded, TaskStarted, TaskUpdate
from loadbalancer.scheduling.task_state import TaskState
from tests.support.waiting import until
from wire.codec import WorkerEnvelope, decode_for_worker, encode
from wire.inputs import CallInputs, Part
from wire.messages import PROTOCOL, Ack, Assign, Cancel, Capacity, Finished, Hello, Started, ToBalancer

PATIENCE_S = 30.0
RESULT = (Part(),)


class Peer:
    """The connection of a worker."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    async def send(self, *messages: ToBalancer) -> None:
        frames = [[b"{}"] if isinstance(message, Finished) else [] for message in messages]
        await self._socket.send_multipart(encode(map(WorkerEnvelope, messages, frames)))

    async def receive(self) -> list[object]:
        """Return the messages of the next ZeroMQ message, acknowledgements apart."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                received = [each.message for each in decode_for_worker(await self._socket.recv_multipart())]
                if others := [message for message in received if not isinstance(message, Ack)]:
                    return list(others)


@asynccontextmanager
async def connected(folder: Path, name: str, capacity: Capacity, pid: int = 1) -> AsyncIterator[Peer]:
    """The connection of a worker that has said Hello."""
    with Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.ROUTING_ID, name.encode())
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{folder}/workers.sock")
        peer = Peer(socket)
        await peer.send(Hello(PROTOCOL, name, "m", "sim:0", pid), capacity)
        yield peer


@asynccontextmanager
async def serving(
    folder: Path, slots: int, max_tasks: int = 100, max_attempts: int = 3
) -> AsyncIterator[tuple[SchedulerService, Peer]]:
    """A service with one worker that is ready."""
    queue, server = {"max_tasks": max_tasks, "max_attempts": max_attempts}, {"max_n": 1}
    models = {"m": {"engine": "sim"}}
    settings = Settings.model_validate({"data_dir": folder, "models": models, "queue": queue, "server": server})
    service = SchedulerService(settings, f"ipc://{folder}/workers.sock")
    await service.start()
    async with connected(folder, "w", Capacity(slots)) as peer:
        await until(lambda: service.is_ready("m"))
        yield service, peer
        await service.stop()


def submit(service: SchedulerService, listener: Callable[[TaskUpdate], None] = lambda update: None) -> str:
    [name] = service.submit(
        "m", [CallInputs((Part(),))], timeout_s=60.0, priority=0, listener=listener, own_frames=[[b"{}"]]
    )
    return name


def assigned(messages: Sequence[object]) -> list[str]:
    return [task.task for message in messages if isinstance(message, Assign) for task in message.tasks]


async def test_incidents_are_counted_from_0(tmp_path: Path) -> None:
    """An alert that looks for an increase needs the sample before the first incident."""
    async with serving(tmp_path, slots=1) as (service, _):
        counters = service.counters
        assert {name: counters[name] for name in counters if name.startswith("workers_")} == {
            "workers_lost": 0,
            "workers_silent": 0,
            "workers_stuck": 0,
        }


async def test_submissions_of_one_turn_leave_as_one_message(tmp_path: Path) -> None:
    async with serving(tmp_path, slots=4) as (service, peer):
        names = [submit(service) for _ in range(3)]
        service.cancel(names[:1])
        received = await peer.receive()
        assert assigned(received) == names
        assert received[-1] == Cancel(names[:1])


async def test_results_of_one_wake_up_are_answered_by_one_message(tmp_path: Path) -> None:
    updates: list[TaskUpdate] = []
    async with serving(tmp_path, slots=3) as (service, peer):
        names = [submit(service, updates.append) for _ in range(5)]
        assert assigned(await peer.receive()) == names[:3]
        await peer.send(*(Finished(name, 1, RESULT) for name in names[:3]))
        [message] = await peer.receive()
        assert assigned([message]) == names[3:]
        kinds = [type(update) for update in updates]
        assert kinds == [TaskStarted, TaskCompleted] * 3, "a result is valid without the message of its start"


async def test_full_queue_refuses_at_once_within_a_turn(tmp_path: Path) -> None:
    async with serving(tmp_path, slots=2, max_tasks=1) as (service, peer):
        names = [submit(service) for _ in range(3)]  # two have a slot before the third is counted
        with pytest.raises(QueueFull):
            submit(service)
        assert assigned(await peer.receive()) == names[:2]


async def test_task_that_its_listener_cancels_ends_at_its_new_worker(tmp_path: Path) -> None:
    """The loss of a worker ends one task and moves another, which the end of the first one makes useless."""
    names: list[str] = []
    process = subprocess.Popen(["sleep", "1000"])

    def listener(update: TaskUpdate) -> None:
        if isinstance(update, TaskEnded):
            service.cancel(names)

    async with serving(tmp_path, slots=1, max_attempts=1) as (service, other):
        first = submit(service)
        assert assigned(await other.receive()) == [first]
        async with connected(tmp_path, "lost", Capacity(1, ahead=1), process.pid) as lost:
            await until(lambda: any(each.worker == "lost" and each.slots for each in service.snapshot().workers))
            names += [submit(service, listener) for _ in range(2)]
            assert assigned(await lost.receive()) == names
            await lost.send(Started(names[0], 1))
            await until(lambda: service.scheduler_state.tasks[names[0]].state is TaskState.RUNNING)
            await other.send(Finished(first, 1, RESULT))
            await until(lambda: first not in service.scheduler_state.tasks)
            process.kill()
            process.wait()
            received = await other.receive()
            assert [type(message) for message in received] == [Assign, Cancel]
            assert assigned(received) == names[1:]
