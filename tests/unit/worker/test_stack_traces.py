"""What the worker's log says of code that does not come to its end, and of signals that end the process."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
import time

import pytest

from scripts.harness.processes import PATIENCE_S, wait_until
from tests.support.log_records import messages_of
from worker.stack_traces import StallWatch, log_if_slow, stack_traces


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return messages_of(caplog, "worker.stack_traces")


def test_turn_that_takes_long_is_logged_once_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    watch, is_inside, is_over = StallWatch(0.0, 2.0), threading.Event(), [False]

    def hanging_call() -> None:
        watch.on_turn()
        is_inside.set()
        while not is_over[0]:  # a thread that waits for an event is left out
            time.sleep(0.001)

    thread = threading.Thread(target=hanging_call, name="steps")
    thread.start()
    try:
        assert is_inside.wait(PATIENCE_S)
        watch.check(step_s=3600.0)
        assert not _logged(caplog), "half of the allowed time is not over"
        watch.check(step_s=0.0)
        watch.check(step_s=0.0)
    finally:
        is_over[0] = True
        thread.join()
    [message] = _logged(caplog)
    assert "this worker counts as stuck: steps at " in message, "the loop's thread comes first"
    assert f"{__file__}:" in message
    assert "(hanging_call)" in message


def test_slow_block_is_logged_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    with log_if_slow(3600.0, "not ready yet"):
        pass
    with log_if_slow(0.0, "not ready yet"):
        while not _logged(caplog):
            pass
    assert "not ready yet: MainThread at " in caplog.text
    assert "(test_slow_block_is_logged_with_its_place)" in caplog.text


def test_waiting_threads_are_left_out() -> None:
    may_go_on = threading.Event()
    thread = threading.Thread(target=may_go_on.wait, name="waiting")
    thread.start()
    try:
        assert "waiting at" not in stack_traces()
    finally:
        may_go_on.set()
        thread.join()


def test_equal_stacks_stand_once_and_leave_room_for_the_others() -> None:
    barrier = threading.Barrier(21)

    def idle_thread_of_a_pool() -> None:
        barrier.wait(PATIENCE_S)
        select.select([reader], [], [])

    reader, writer = socket.socketpair()
    with reader, writer:
        pool = [threading.Thread(target=idle_thread_of_a_pool, name=f"pool-{number}") for number in range(20)]
        for thread in pool:
            thread.start()
        barrier.wait(PATIENCE_S)
        try:
            wait_until(lambda: "pool-0 and 19 more at " in stack_traces(), "all threads to wait")
            assert stack_traces().count("(idle_thread_of_a_pool)") == 1
        finally:
            writer.send(b"x")
            for thread in pool:
                thread.join()


def test_fatal_signal_is_logged_with_its_place() -> None:
    code = "import os\nfrom worker.stack_traces import trace_fatal_signals\ntrace_fatal_signals()\nos.abort()"
    ended = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode < 0
    assert 'File "<string>", line 4 in <module>' in ended.stderr
