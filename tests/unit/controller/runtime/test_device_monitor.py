"""What is logged about devices: new faults, faults that are over, and nothing about devices that are gone."""

from __future__ import annotations

import logging

import pytest

from controller.runtime.device_monitor import log_changes
from tests.support.log_records import messages_of


def test_faults_are_logged_as_they_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "controller")
    log_changes({}, {"box/cuda:0": "it is silent"}, ["box/cuda:0", "cuda:0"])
    log_changes({"box/cuda:0": "it is silent"}, {"box/cuda:0": "it is still silent"}, ["box/cuda:0", "cuda:0"])
    log_changes({"box/cuda:0": "it is silent"}, {}, ["box/cuda:0", "cuda:0"])
    assert messages_of(caplog, "controller") == ["box/cuda:0 is not used: it is silent", "box/cuda:0 is used again"]


def test_device_of_a_machine_that_is_gone_is_not_used_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "controller")
    log_changes({"box/cuda:0": "it is silent"}, {}, ["cuda:0"])
    assert not messages_of(caplog, "controller")
