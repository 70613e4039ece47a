"""How long a loop has received nothing, without the time in which the loop itself stood still. Pure."""

from __future__ import annotations

#: A turn may be late by so much on a busy machine.
_LATE_S = 2.0


class SilenceClock:
    """Measures the silence of a peer. A process that was stopped, with its machine or alone, has not listened."""

    def __init__(self, now: float, max_turn_s: float) -> None:
        """`max_turn_s`: longest time that the loop waits for a message."""
        self._max_turn_s = max_turn_s
        self._turn_at = self._received_at = now

    def __repr__(self) -> str:
        return f"<SilenceClock, silent for {self._turn_at - self._received_at:.1f} s>"

    def turn(self, now: float) -> float:
        """Note the begin of a turn. Return for how long the loop stood still before it; 0 if it did not."""
        pause_s, self._turn_at = now - self._turn_at, now
        if pause_s <= self._max_turn_s + _LATE_S:
            return 0.0
        self._received_at = min(self._received_at + pause_s, now)
        return pause_s

    def on_message(self, now: float) -> None:
        self._received_at = now

    def silent_s(self, now: float) -> float:
        return now - self._received_at
