"""The agent's connection to the balancer: a DEALER socket over TCP with CURVE, replaced when nothing answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import zmq

from wire.agents import (
    MAX_AGENT_MESSAGE_BYTES,
    FromAgent,
    MalformedAgentMessage,
    ToAgent,
    decode_for_agent,
    encode_agent_message,
)
from wire.curve import WorkerKey, secure_client
from worker.silence_clock import SilenceClock

log = logging.getLogger(__name__)

#: A connection on which nothing arrives for so long is replaced.
_ANSWER_TIMEOUT_S = 6.0
_MAX_RECEIVED = 64
#: Longest time that `receive` waits.
_MAX_WAIT_S = 1.0


class HeadConnection:
    """Owned by the agent's loop: no other thread uses it."""

    def __init__(self, address: str, key: WorkerKey) -> None:
        self.address = address
        self._key = key
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._connected_at = 0.0
        self._silence = SilenceClock(time.monotonic(), _MAX_WAIT_S)
        self._is_rejected = False

    def __repr__(self) -> str:
        return f"<HeadConnection to {self.address}>"

    def silence_s(self, now: float) -> float:
        """Return the seconds since the last message, without those in which this process was suspended."""
        if paused_s := self._silence.turn(now):
            log.warning("this process was suspended for %.1f s", paused_s)
            self._connected_at += paused_s
        return self._silence.silent_s(now)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close(500)
        self._context.term()

    def ensure_open(self) -> bool:
        """Open a connection if there is none that works. Return whether it is new: Hello comes first."""
        now = time.monotonic()
        silent_s = self.silence_s(now)
        if self._socket is not None and min(silent_s, now - self._connected_at) < _ANSWER_TIMEOUT_S:
            return False
        if self._socket is not None:
            self._socket.close(0)
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_AGENT_MESSAGE_BYTES)
        dealer.setsockopt(zmq.RECONNECT_IVL, 100)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        secure_client(dealer, self._key)
        dealer.connect(self.address)
        self._socket, self._connected_at = dealer, now
        return True

    def send(self, message: FromAgent) -> None:
        """Queue the message. What cannot be queued is dropped: every report has the whole state."""
        assert self._socket is not None
        try:
            self._socket.send_multipart(encode_agent_message(message), zmq.DONTWAIT)
        except zmq.Again:  # ZeroMQ does not reconnect after a rejected key
            if not self._is_rejected:
                self._is_rejected = True
                log.error("the balancer at %s does not allow the key of this agent; trying again", self.address)
            self._connected_at = min(self._connected_at, time.monotonic() - _ANSWER_TIMEOUT_S + 1.0)

    def receive(self, timeout_s: float) -> Sequence[tuple[ToAgent, bytes]]:
        """Return what has arrived; wait up to `timeout_s` for the first message."""
        assert self._socket is not None
        found: list[tuple[ToAgent, bytes]] = []
        if not self._socket.poll(int(timeout_s * 1000)):
            return found
        while len(found) < _MAX_RECEIVED:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            self._silence.on_message(time.monotonic())
            self._is_rejected = False
            try:
                found.append(decode_for_agent(frames))
            except MalformedAgentMessage as error:
                log.warning("dropped a malformed message: %s", error)
        return found
