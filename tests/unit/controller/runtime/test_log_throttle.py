"""`LogThrottle`: a message is logged when it appears and when its key changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.runtime.decision_log import REPEAT_AFTER_S, LogThrottle

TAKEN = ("taken", "2 more wanted, but every device is taken")
FEWER = ("taken", "1 more wanted, but every device is taken")
CRASHED = ("crashed", "3 crashes in a row, next try in 40 s")
SOONER = ("crashed", "3 crashes in a row, next try in 2 s")
SMALL = ("memory", "1 more wanted, but no GPU has 12.0 GiB free")

Message = tuple[str, str]


@pytest.mark.parametrize(
    ("observed", "logged"),
    [
        ([(0, TAKEN), (1, TAKEN), (10_000, TAKEN)], [TAKEN]),
        ([(0, TAKEN), (1, FEWER)], [TAKEN]),
        ([(0, CRASHED), (38, SOONER)], [CRASHED]),
        ([(0, TAKEN), (1, CRASHED)], [TAKEN, CRASHED]),
        # It disappears and returns: logged once, and again after REPEAT_AFTER_S.
        ([(0, TAKEN), (1, None), (2, TAKEN), (3, None), (4, TAKEN)], [TAKEN]),
        ([(0, TAKEN), (1, None), (2, TAKEN), (REPEAT_AFTER_S, TAKEN), (REPEAT_AFTER_S + 1, TAKEN)], [TAKEN, TAKEN]),
        ([(0, TAKEN), (1, None), (REPEAT_AFTER_S + 1, FEWER)], [TAKEN, FEWER]),
        # Two alternate.
        ([(0, TAKEN), (1, SMALL), (2, TAKEN), (3, SMALL), (4, TAKEN)], [TAKEN, SMALL]),
        ([(0, TAKEN), (1, SMALL), (2, TAKEN), (REPEAT_AFTER_S, TAKEN)], [TAKEN, SMALL, TAKEN]),
    ],
)
def test_repeated_key_is_not_logged(observed: list[tuple[float, Message | None]], logged: list[Message]) -> None:
    throttle = LogThrottle()
    texts: list[str] = []
    for now, message in observed:
        texts += throttle.filter({} if message is None else {"m": message}, now).values()
    assert texts == [text for _, text in logged]


def test_models_are_throttled_separately() -> None:
    throttle = LogThrottle()
    assert throttle.filter({"m": TAKEN}, 0.0) == {"m": TAKEN[1]}
    assert throttle.filter({"m": TAKEN, "n": TAKEN}, 1.0) == {"n": TAKEN[1]}


@given(st.lists(st.tuples(st.floats(0.1, 200.0), st.sampled_from([None, TAKEN, FEWER, CRASHED, SMALL]))))
def test_each_key_once_per_interval_and_last_is_logged(observed: list[tuple[float, Message | None]]) -> None:
    throttle, now = LogThrottle(), 0.0
    logged_at: dict[str, float] = {}
    last = None
    for wait_s, message in [*observed, (0.1, TAKEN), (2 * REPEAT_AFTER_S, TAKEN)]:
        now += wait_s
        if message is not None and throttle.filter({"m": message}, now):
            last = message[0]
            assert now - logged_at.get(last, -REPEAT_AFTER_S) >= REPEAT_AFTER_S * (1 - 1e-9)
            logged_at[last] = now
        elif message is None:
            throttle.filter({}, now)
    assert last == "taken"
