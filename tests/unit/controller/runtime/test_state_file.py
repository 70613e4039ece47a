"""The state that a controller leaves for the next one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from controller.autoscaler.overrides import Override, Overrides
from controller.runtime.state_file import StateFile
from tests.support.log_records import messages_of


def test_saved_state_is_read_again(tmp_path: Path) -> None:
    overrides = Overrides({"m": Override(2, 1e9)}, paused_since=7.0)
    StateFile(tmp_path).save(overrides, 3, b"{}", final=True)
    saved = StateFile(tmp_path).load()
    assert saved is not None
    assert (saved.overrides, saved.last_decision, saved.memory) == (overrides, 3, b"{}")


def test_first_start_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert StateFile(tmp_path).load() is None
    assert messages_of(caplog, "controller") == []


@pytest.mark.parametrize("content", [b"", b"\0\0", b'{"overrides":', b'{"overrides": {}, "saved_at": "then"}'])
def test_unreadable_state_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    """A pause may end by it: an operator must learn that."""
    (tmp_path / "overrides.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert StateFile(tmp_path).load() is None
    (message,) = messages_of(caplog, "controller")
    assert message.startswith(f"{tmp_path}/overrides.json cannot be read, and overrides, a pause and")


@pytest.mark.parametrize("content", [b"", b"\0\0", b"[1]", b'{"m": '])
def test_unreadable_memory_of_policies_keeps_the_overrides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    overrides = Overrides(paused_since=7.0)
    StateFile(tmp_path).save(overrides, 3, content)
    with caplog.at_level(logging.WARNING):
        saved = StateFile(tmp_path).load()
    assert saved is not None
    assert (saved.overrides, saved.memory) == (overrides, b"")
    (message,) = messages_of(caplog, "controller")
    assert message.startswith(f"{tmp_path}/autoscaler.json cannot be read, and what the policies")
