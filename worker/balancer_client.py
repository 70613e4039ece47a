"""The worker's line to the balancer: a DEALER socket in a thread of its own, so that a long step delays nothing.

The step loop and the render pool put envelopes in, the loop takes envelopes out; neither touches the socket. The thread
beats the heart, and notices when there is no balancer any more.
"""

from __future__ import annotations

import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import zmq

from wire.codec import BalancerEnvelope, MalformedFrames, WorkerEnvelope, decode_for_worker, encode
from wire.curve import WorkerKey, secure_client
from wire.messages import Bye, Heartbeat, Reject
from worker.transport import DrainRequested

log = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 256 * 2**20
#: Over TCP, a connection on which no heartbeat is answered for so long is given up for a new one.
_PATIENCE_S = 5.0


class _Refused(Exception):
    """The balancer hangs up on this worker's key."""


class _Silent(Exception):
    """Nothing comes over this connection; a new one may do better."""


class Link:
    """A connection to the balancer that survives the balancer."""

    def __init__(
        self,
        address: str,
        worker: str,
        *,
        heartbeat_s: float,
        orphan_after_s: float,
        key: WorkerKey | None = None,
    ) -> None:
        """A TCP address needs a key: raises `ValueError` without."""
        if key is None and not address.startswith("ipc://"):
            raise ValueError(f"{address} is not on this machine, and there is no key for it")
        self._address = address
        self._key = key
        self._worker = worker
        self._heartbeat_s = heartbeat_s
        self._orphan_after_s = orphan_after_s
        self._beat: Callable[[], Heartbeat]
        self._outbox: queue.SimpleQueue[Sequence[WorkerEnvelope]] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[BalancerEnvelope | DrainRequested] = queue.SimpleQueue()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link")
        #: The refusal of the key is in the log.
        self._told = False
        self._malformed = 0
        #: No balancer was heard for `orphan_after_s`.
        self.orphaned = False

    def start(self, beat: Callable[[], Heartbeat]) -> None:
        """Connect; the thread calls `beat` for every heartbeat. What was sent before goes first."""
        self._beat = beat
        self._thread.start()

    def send(self, *envelopes: WorkerEnvelope) -> None:
        """Say these to the balancer, in one message. Callable from any thread."""
        self._outbox.put(envelopes)
        self._wake()

    def inject(self, envelope: BalancerEnvelope | DrainRequested) -> None:
        """Treat this as if the balancer had said it. Callable from any thread and from a signal handler."""
        self._inbox.put(envelope)

    def receive(self, timeout_s: float) -> list[BalancerEnvelope | DrainRequested]:
        """Everything that has come; waits up to `timeout_s` for the first. Called by the step loop alone."""
        envelopes: list[BalancerEnvelope | DrainRequested] = []
        try:
            envelopes.append(self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait())
            while True:
                envelopes.append(self._inbox.get_nowait())
        except queue.Empty:
            return envelopes

    def close(self, reason: str, *, crashed: bool = False) -> None:
        """Say Bye after everything else, and end the thread."""
        self.send(WorkerEnvelope(Bye(reason, crashed)))
        self._closing.set()
        self._wake()
        self._thread.join()
        self._waker.close()
        self._woken.close()

    # ---- inside the thread

    def _run(self) -> None:
        context = zmq.Context()
        self._heard = self._next_beat = time.monotonic()
        try:
            while not self._call(context):
                self._closing.wait(self._heartbeat_s)
        except Exception:
            log.exception("the link to the balancer broke")
            self.inject(BalancerEnvelope(Reject("the link thread broke", fatal=True)))
        finally:
            context.term()

    def _call(self, context: zmq.Context[zmq.Socket[bytes]]) -> bool:
        """Talk over one connection. Whether it is over; if not, the balancer has hung up for good: call again."""
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, self._worker.encode())
        dealer.setsockopt(zmq.LINGER, 1000)
        dealer.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        dealer.setsockopt(zmq.RECONNECT_IVL, 100)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if self._key is not None:
            secure_client(dealer, self._key)
        dealer.connect(self._address)
        try:
            self._converse(dealer)
        except _Refused:
            if not self._told:
                self._told = True
                log.error("the balancer at %s does not let this worker's key in; trying again", self._address)
            return self._closing.is_set()
        except _Silent:
            return False
        finally:
            dealer.close()
        return True

    def _converse(self, dealer: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(self._woken.fileno(), zmq.POLLIN)
        called = time.monotonic()
        while True:
            closing = self._closing.is_set()  # read before the outbox, so that nothing said before is left behind
            self._flush(dealer)
            if closing:
                return
            now = time.monotonic()
            if now - self._heard > self._orphan_after_s and not self.orphaned:
                self.orphaned = True
                self.inject(DrainRequested(f"no balancer for {self._orphan_after_s:g} s"))
            if self._key is not None and now - max(self._heard, called) > _PATIENCE_S + self._heartbeat_s:
                raise _Silent
            if now >= self._next_beat:
                self._next_beat = now + self._heartbeat_s
                self._say(dealer, [WorkerEnvelope(self._counted(self._beat()))])
            ready = dict(poller.poll(math.ceil(max(self._next_beat - now, 0.0) * 1000)))
            if self._woken.fileno() in ready:
                self._woken.recv(4096)
            if dealer in ready:
                self._heard = time.monotonic()
                self._told = False
                self._read(dealer)

    def _counted(self, beat: Heartbeat) -> Heartbeat:
        counters = msgspec.structs.replace(beat.counters, malformed=self._malformed)
        return msgspec.structs.replace(beat, counters=counters)

    def _flush(self, dealer: zmq.Socket[bytes]) -> None:
        while True:
            try:
                envelopes = self._outbox.get_nowait()
            except queue.Empty:
                return
            self._say(dealer, envelopes)

    def _say(self, dealer: zmq.Socket[bytes], envelopes: Sequence[WorkerEnvelope]) -> None:
        """Raises `_Refused` where a key was not let in. What is lost by it, the balancer never waited for."""
        if self._key is None:
            dealer.send_multipart(encode(envelopes), copy=False)
            return
        try:
            dealer.send_multipart(encode(envelopes), zmq.DONTWAIT, copy=False)
        except zmq.Again:  # a refusal is final to ZeroMQ: there is no connection any more, and none will come
            raise _Refused from None

    def _read(self, dealer: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frames = dealer.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                envelopes = decode_for_worker(frames)
            except MalformedFrames as error:
                if not self._malformed:
                    log.warning("dropped a malformed message (further ones are only counted): %s", error)
                self._malformed += 1
                continue
            for envelope in envelopes:
                self._inbox.put(envelope)

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except BlockingIOError:
            return  # the thread has wake-ups enough waiting
