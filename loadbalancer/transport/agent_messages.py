"""The messages of machines' agents on the socket of remote workers, and the files that they fetch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import zmq

from loadbalancer.transport.agent_relay import AgentRelay, FileRequest
from loadbalancer.transport.weight_files import WeightFiles
from loadbalancer.transport.worker_routes import RemoteRoute
from wire.agents import (
    AgentOrders,
    AgentStates,
    FileList,
    FilePart,
    ListFiles,
    ToAgent,
    decode_from_agent,
    encode_agent_message,
)
from wire.codec import Frame

#: Requests for files that wait at once, of all agents.
_MAX_FILE_REQUESTS = 64
#: Larger frames are sent without a copy.
_ZERO_COPY_BYTES = 1 << 14
_MORE = zmq.DONTWAIT | zmq.SNDMORE


class AgentMessages:
    """What agents send and get. All methods are called in the event loop."""

    def __init__(self, files: WeightFiles, heartbeat_s: float, on_worker_lost: Callable[[str, str], None]) -> None:
        """`files` are those of models that agents may fetch."""
        self._files = files
        self._on_worker_lost = on_worker_lost
        self._relay = AgentRelay(heartbeat_s, time.monotonic)
        self._file_reader = ThreadPoolExecutor(1, "file-reader")
        self._file_requests = 0
        self._socket: zmq.Socket[bytes] | None = None

    def open(self, socket: zmq.Socket[bytes], on_sent: Callable[[], None]) -> None:
        """Send through this socket from now on. `on_sent` is called after each message."""
        self._loop = asyncio.get_running_loop()
        self._socket, self._on_sent = socket, on_sent

    def close(self) -> None:
        self._file_reader.shutdown(wait=False, cancel_futures=True)

    def keep_only(self, names: frozenset[str]) -> None:
        """Forget all other agents."""
        self._relay.keep_only(names)

    def receive(self, route: RemoteRoute, frames: Sequence[Frame]) -> None:
        """Take in a message, and answer it. Raises `MalformedAgentMessage`."""
        replies, ended, files = self._relay.on_message(route, decode_from_agent(frames))
        for reply in replies:
            self._send(route, reply)
        for worker in ended:
            self._loop.call_soon(self._on_worker_lost, worker, "its process has ended")
        if files is not None:
            self._loop.call_soon(self._on_file_request, route, files)

    def exchange(self, orders: Mapping[str, AgentOrders]) -> AgentStates:
        """Send the machines' agents their orders, and return what the machines have reported.

        Orders for machines that are not connected are dropped.
        """
        for route, each in self._relay.on_orders(orders):
            self._send(route, each)
        return self._relay.states()

    def _on_file_request(self, route: RemoteRoute, request: FileRequest) -> None:
        """Read in a thread and answer then. What is asked while too much waits is dropped, and asked again."""
        socket = self._socket
        if self._file_requests >= _MAX_FILE_REQUESTS or socket is None or socket.closed:
            return
        self._file_requests += 1
        answer = self._loop.run_in_executor(self._file_reader, _read_files, self._files, request)

        def send(done: asyncio.Future[tuple[FileList | FilePart, bytes]]) -> None:
            self._file_requests -= 1
            if not done.cancelled() and done.exception() is None and not socket.closed:
                self._send(route, *done.result())

        answer.add_done_callback(send)

    def _send(self, route: RemoteRoute, message: ToAgent, data: bytes = b"") -> None:
        """Send a message. One for an agent that is not connected is lost: its next Hello comes over another one."""
        assert self._socket is not None
        *frames, last = encode_agent_message(message, data)
        try:
            self._socket.send(route.identity, _MORE)
            for frame in frames:
                self._socket.send(frame, _MORE)
            self._socket.send(last, zmq.DONTWAIT, copy=len(last) < _ZERO_COPY_BYTES)
        except zmq.ZMQError:
            return
        self._on_sent()


def _read_files(files: WeightFiles, request: FileRequest) -> tuple[FileList | FilePart, bytes]:
    """Answer the request. Called in a thread."""
    if isinstance(request, ListFiles):
        return files.list_files(request.model), b""
    return files.read_part(request.model, request.file, request.offset, request.size)
