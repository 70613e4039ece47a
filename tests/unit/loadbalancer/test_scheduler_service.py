"""The scheduler's service with a worker's socket: what one turn of the loop decides leaves as one message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
from zmq.asyncio import Context, Socket

from configs.settings import Settings
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import QueueFull, TaskCompleted, TaskStarted, TaskUpdate
from wire.codec import WorkerEnvelope, decode_for_worker, encode
from wire.inputs import CallInputs, Part
from wire.messages import PROTOCOL, Ack, Assign, Cancel, Capacity, Finished, Hello, ToBalancer

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
async def serving(folder: Path, slots: int, max_tasks: int = 100) -> AsyncIterator[tuple[SchedulerService, Peer]]:
    """A service with one worker that is ready."""
    queue, server = {"max_tasks": max_tasks}, {"max_n": 1}
    models = {"m": {"engine": "sim"}}
    settings = Settings.model_validate({"data_dir": folder, "models": models, "queue": queue, "server": server})
    service = SchedulerService(settings, f"ipc://{folder}/workers.sock")
    await service.start()
    with Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.ROUTING_ID, b"w")
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{folder}/workers.sock")
        peer = Peer(socket)
        await peer.send(Hello(PROTOCOL, "w", "m", "sim:0", 1), Capacity(slots))
        async with asyncio.timeout(PATIENCE_S):
            while not service.is_ready("m"):
                await asyncio.sleep(0.01)
        yield service, peer
        await service.stop()


def submit(service: SchedulerService, listener: Callable[[TaskUpdate], None] = lambda update: None) -> str:
    [name] = service.submit(
        "m", [CallInputs((Part(),))], timeout_s=60.0, priority=0, listener=listener, own_frames=[[b"{}"]]
    )
    return name


def assigned(messages: Sequence[object]) -> list[str]:
    return [task.task for message in messages if isinstance(message, Assign) for task in message.tasks]


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
