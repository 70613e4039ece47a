"""What holds a model up is said when it comes and when it changes, and not over and over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.runtime.log_throttle import REPEAT_AFTER_S, LogThrottle

TAKEN = "2 more wanted, but every device is taken"
FEWER = "1 more wanted, but every device is taken"
CRASHED = "3 crashes in a row, next try in 40 s"
SOONER = "3 crashes in a row, next try in 2 s"
SMALL = "1 more wanted, but no GPU has 12.0 GiB free: the most is 3.5 GiB on cuda:0"
SMALLER = "1 more wanted, but no GPU has 12.0 GiB free: the most is 0.0 GiB on cuda:1"


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([(0, TAKEN), (1, TAKEN), (10_000, TAKEN)], [TAKEN]),
        ([(0, TAKEN), (1, FEWER)], [TAKEN]),
        ([(0, CRASHED), (38, SOONER)], [CRASHED]),
        ([(0, SMALL), (1, SMALLER)], [SMALL]),
        ([(0, TAKEN), (1, CRASHED)], [TAKEN, CRASHED]),
        # It comes and goes: said once, and again when it stays beyond that.
        ([(0, TAKEN), (1, None), (2, TAKEN), (3, None), (4, TAKEN)], [TAKEN]),
        ([(0, TAKEN), (1, None), (2, TAKEN), (REPEAT_AFTER_S, TAKEN), (REPEAT_AFTER_S + 1, TAKEN)], [TAKEN, TAKEN]),
        ([(0, TAKEN), (1, None), (REPEAT_AFTER_S + 1, FEWER)], [TAKEN, FEWER]),
        # Two by turns.
        ([(0, TAKEN), (1, SMALL), (2, TAKEN), (3, SMALL), (4, TAKEN)], [TAKEN, SMALL]),
        ([(0, TAKEN), (1, SMALL), (2, TAKEN), (REPEAT_AFTER_S, TAKEN)], [TAKEN, SMALL, TAKEN]),
    ],
)
def test_what_is_said(looks: list[tuple[float, str | None]], said: list[str]) -> None:
    obstacles = LogThrottle()
    heard: list[str] = []
    for now, text in looks:
        heard += obstacles.news({} if text is None else {"m": text}, now).values()
    assert heard == said


def test_each_model_is_spoken_of_for_itself() -> None:
    obstacles = LogThrottle()
    assert obstacles.news({"m": TAKEN}, 0.0) == {"m": TAKEN}
    assert obstacles.news({"m": TAKEN, "n": TAKEN}, 1.0) == {"n": TAKEN}


@given(st.lists(st.tuples(st.floats(0.1, 200.0), st.sampled_from([None, TAKEN, FEWER, CRASHED, SMALL]))))
def test_no_kind_is_said_twice_in_a_while_and_the_last_is_said_in_the_end(
    looks: list[tuple[float, str | None]],
) -> None:
    obstacles, now = LogThrottle(), 0.0
    last: dict[str, float] = {}
    spoken = None
    for wait_s, text in [*looks, (0.1, TAKEN), (2 * REPEAT_AFTER_S, TAKEN)]:
        now += wait_s
        for said in obstacles.news({} if text is None else {"m": text}, now).values():
            spoken = said.lstrip("0123456789")
            assert now - last.get(spoken, -REPEAT_AFTER_S) >= REPEAT_AFTER_S * (1 - 1e-9)
            last[spoken] = now
    assert spoken == TAKEN.lstrip("0123456789")
