"""The worker's connection to the balancer: a DEALER socket in its own thread, so that a long step delays nothing.

The step loop and the post-processor exchange envelopes with the thread through queues and never use the socket. The
thread sends the heartbeats and detects that the balancer is gone.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import zmq

from configs.section_base import MAX_MESSAGE_BYTES
from wire.codec import BalancerEnvelope, MalformedFrames, WorkerEnvelope, decode_for_worker, encode_bounded
from wire.curve import WorkerKey, secure_client
from wire.messages import Assign, Bye, Failed, Finished, Heartbeat, Reject, Started
from worker.offer import RoundTrips
from worker.silence_clock import SilenceClock
from worker.transport import DrainRequested

log = logging.getLogger(__name__)

#: Messages that wait to be sent leave together, up to this number and these bytes of frames.
_MAX_TOGETHER = 256
_MAX_TOGETHER_BYTES = 2**20
#: Larger frames are sent without a copy; for smaller ones the copy is faster.
_ZERO_COPY_BYTES = 2**16
_LAST_MESSAGES = (Finished, Failed)
#: As numbers: pyzmq's are slow enumerations.
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
#: Over TCP, a connection on which no heartbeat is answered for so long is replaced.
_ANSWER_TIMEOUT_S = 5.0
#: A balancer that is silent for so long is worth a line in the log.
_WARN_AFTER_S = 10.0


class _KeyRejected(Exception):
    """The balancer closed the connection because it does not allow this worker's key."""


class _BalancerSilent(Exception):
    """No message arrives over this connection."""


class BalancerClient:
    """Reconnects when the balancer restarts."""

    def __init__(
        self,
        address: str,
        worker: str,
        *,
        heartbeat_s: float,
        orphan_after_s: float,
        key: WorkerKey | None = None,
        round_trips: RoundTrips | None = None,
    ) -> None:
        """Raises `ValueError` for a TCP address without a key."""
        if key is None and not address.startswith("ipc://"):
            raise ValueError(f"{address} is not on this machine, and there is no key for it")
        self._address = address
        self._key = key
        self._worker = worker
        self._heartbeat_s = heartbeat_s
        self._orphan_after_s = orphan_after_s
        self._round_trips = round_trips or RoundTrips()
        self._heartbeat: Callable[[], Heartbeat]
        self._outbox: queue.SimpleQueue[Sequence[WorkerEnvelope]] = queue.SimpleQueue()
        #: Taken from the outbox. Only the thread uses it.
        self._unsent: deque[WorkerEnvelope] = deque()
        self._inbox: queue.SimpleQueue[BalancerEnvelope | DrainRequested] = queue.SimpleQueue()
        self._waker, self._wake_receiver = socket.socketpair()
        self._waker.setblocking(False)
        self._wake_receiver.setblocking(False)
        #: The thread waits for a message or a wake-up. It looks into the outbox after it has set this.
        self._is_asleep = False
        #: A function to call, and when.
        self._timer: tuple[float, Callable[[], None]] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="balancer-client")
        #: The rejection of the key is logged.
        self._rejection_logged = False
        #: The silence of the balancer is logged.
        self._silence_logged = False
        self._malformed = 0
        #: True when the balancer was silent for `orphan_after_s`.
        self.orphaned = False

    def start(self, heartbeat: Callable[[], Heartbeat]) -> None:
        """Connect. The thread calls `heartbeat` for every heartbeat; envelopes sent before go first."""
        self._heartbeat = heartbeat
        self._thread.start()

    def send(self, *envelopes: WorkerEnvelope) -> None:
        """Queue these. They leave as one message with others that wait, or as several where they are large.

        Callable from any thread.
        """
        self._outbox.put(envelopes)
        if self._is_asleep:
            self._is_asleep = False
            with contextlib.suppress(BlockingIOError):  # enough wake-ups are pending
                self._waker.send(b"\0")

    def send_later(self, *envelopes: WorkerEnvelope) -> None:
        """Queue these without waking the thread: they leave with the next ones, at the latest with a heartbeat."""
        self._outbox.put(envelopes)

    def call_at(self, at: float, function: Callable[[], None]) -> None:
        """Let the thread call `function` at this time, in place of an earlier one. Callable from any thread."""
        self._timer = at, function
        self.send()  # wakes the thread

    def request_drain(self, reason: str, grace_s: float = 0.0) -> None:
        """Pass the request to the step loop. Callable from any thread and from a signal handler."""
        self._inbox.put(DrainRequested(reason, grace_s))

    def receive(self, timeout_s: float) -> list[BalancerEnvelope | DrainRequested]:
        """Return everything that has arrived; wait up to `timeout_s` for the first. Only the step loop calls it."""
        envelopes: list[BalancerEnvelope | DrainRequested] = []
        try:
            envelopes.append(self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait())
            while True:
                envelopes.append(self._inbox.get_nowait())
        except queue.Empty:
            return envelopes

    def close(self, reason: str, *, crashed: bool = False) -> None:
        """Send Bye after everything else and end the thread."""
        self._outbox.put([WorkerEnvelope(Bye(reason, crashed))])
        self._closing.set()
        self._waker.close()  # wakes the thread
        self._thread.join()
        self._wake_receiver.close()

    # ---- inside the thread

    def _run(self) -> None:
        context = zmq.Context()
        self._next_heartbeat = time.monotonic()
        self._silence = SilenceClock(self._next_heartbeat, self._heartbeat_s)
        try:
            while not self._connect(context):
                self._closing.wait(self._heartbeat_s)
        except Exception:
            log.exception("the connection to the balancer failed")
            self._inbox.put(BalancerEnvelope(Reject("the connection thread failed", fatal=True)))
        finally:
            context.term()

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]]) -> bool:
        """Serve one connection. False: it has failed, and another is needed."""
        dealer = context.socket(zmq.DEALER)
        if self._key is None:  # over TCP the balancer gives out identities, which nobody else can then claim
            dealer.setsockopt(zmq.ROUTING_ID, self._worker.encode())
        dealer.setsockopt(zmq.LINGER, 1000)
        # No bound: a full queue would block the thread, which has to notice that the balancer is gone.
        dealer.setsockopt(zmq.SNDHWM, 0)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        dealer.setsockopt(zmq.RECONNECT_IVL, 100)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if self._key is not None:
            secure_client(dealer, self._key)
        dealer.connect(self._address)
        try:
            self._exchange(dealer)
        except _KeyRejected:
            if not self._rejection_logged:
                self._rejection_logged = True
                log.error("the balancer at %s does not allow the key of this worker; trying again", self._address)
            return self._closing.is_set()
        except _BalancerSilent:
            return False
        finally:
            dealer.close()
        return True

    def _exchange(self, dealer: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        wake_ups = self._wake_receiver.fileno()
        poller.register(wake_ups, zmq.POLLIN)
        connected = time.monotonic()
        while True:
            closing = self._closing.is_set()  # read before the outbox, so that nothing sent before it is left behind
            now = time.monotonic()
            connected += self._silence.turn(now)
            if now >= self._next_heartbeat and not closing:
                self._next_heartbeat = now + self._heartbeat_s
                beat = self._heartbeat()
                counters = msgspec.structs.replace(beat.counters, malformed=self._malformed)
                self._outbox.put([WorkerEnvelope(msgspec.structs.replace(beat, counters=counters))])
            if self._timer is not None:
                self._call_due(now)
            self._flush(dealer)
            if closing:
                return
            silent_s = self._silence.silent_s(now)
            if silent_s > min(self._heartbeat_s, self._orphan_after_s):
                self._on_silence(silent_s)
            if self._key is not None and min(silent_s, now - connected) > _ANSWER_TIMEOUT_S + self._heartbeat_s:
                raise _BalancerSilent
            self._is_asleep = True
            if not self._outbox.empty():  # put before the flag was set: nobody wakes this thread
                self._is_asleep = False
                continue
            timer = self._timer
            wake_at = self._next_heartbeat if timer is None else min(timer[0], self._next_heartbeat)
            ready = dict(poller.poll(math.ceil(max(wake_at - time.monotonic(), 0.0) * 1000)))
            self._is_asleep = False
            if wake_ups in ready:
                self._wake_receiver.recv(4096)
            if dealer in ready:
                self._silence.on_message(time.monotonic())
                self._rejection_logged = self._silence_logged = False
                self._read(dealer)

    def _on_silence(self, silent_s: float) -> None:
        if silent_s > min(max(_WARN_AFTER_S, 3 * self._heartbeat_s), self._orphan_after_s) and not self._silence_logged:
            self._silence_logged = True
            log.warning("no balancer answers at %s; trying on", self._address)
        if silent_s > self._orphan_after_s and not self.orphaned:
            self.orphaned = True
            self.request_drain(f"no balancer for {self._orphan_after_s:g} s")

    def _call_due(self, now: float) -> None:
        timer = self._timer
        if timer is not None and now >= timer[0]:
            if self._timer is timer:
                self._timer = None
            timer[1]()

    def _flush(self, dealer: zmq.Socket[bytes]) -> None:
        """Raises `_KeyRejected`. A balancer that rejects the key does not wait for the lost messages."""
        flags = 0 if self._key is None else zmq.DONTWAIT
        while together := self._take_together():
            try:
                for *frames, last in encode_bounded(together):
                    for frame in frames:
                        dealer.send(frame, flags | zmq.SNDMORE, copy=len(frame) < _ZERO_COPY_BYTES)
                    dealer.send(last, flags, copy=len(last) < _ZERO_COPY_BYTES)
            except zmq.Again:  # ZeroMQ does not reconnect after a rejected key
                raise _KeyRejected from None

    def _take_together(self) -> list[WorkerEnvelope]:
        """Remove and return the envelopes that leave next, as one message; none if none wait.

        A task whose end is among them needs no word about its start.
        """
        unsent, outbox = self._unsent, self._outbox
        while len(unsent) < _MAX_TOGETHER and not outbox.empty():  # only this thread takes from it
            unsent.extend(outbox.get_nowait())
        together: list[WorkerEnvelope] = []
        size, starts = 0, False
        while unsent and len(together) < _MAX_TOGETHER:
            message, frames = unsent[0]
            if frames:
                size += sum(map(len, frames))
                if together and size > _MAX_TOGETHER_BYTES:
                    break
            starts = starts or type(message) is Started
            together.append(unsent.popleft())
        if not starts:
            return together
        ended = {message.task for message, _ in together if isinstance(message, _LAST_MESSAGES)}
        return [each for each in together if not (isinstance(each.message, Started) and each.message.task in ended)]

    def _read(self, dealer: zmq.Socket[bytes]) -> None:
        while int(dealer.getsockopt(_EVENTS)) & _POLLIN:  # cheaper than the exception of an empty socket
            frames: list[bytes] = []
            has_more = True
            while has_more:  # all frames of a message are there once the first is
                frame = dealer.recv(zmq.DONTWAIT, copy=False)
                frames.append(frame.bytes)
                has_more = frame.more
            try:
                envelopes = decode_for_worker(frames)
            except MalformedFrames as error:
                if not self._malformed:
                    log.warning("dropped a malformed message (further ones are only counted): %s", error)
                self._malformed += 1
                continue
            for envelope in envelopes:
                message = envelope.message
                # Here, because the loop may be in a step. Without a queue there is nothing to measure.
                if isinstance(message, Assign) and (message.queued or self._round_trips.queued):
                    self._round_trips.on_assign(message.queued, time.monotonic())
                self._inbox.put(envelope)
