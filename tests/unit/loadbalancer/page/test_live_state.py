"""What the page is told of the present, and that changes lead from one state to the next."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.page.live_state import Tables, changes, live_state
from loadbalancer.page.recent_starts import Starts
from wire.messages import StartupTimes, WorkerCounters
from wire.scaling import ControllerReport, DeviceRecord, MachineRecord
from wire.snapshot import ModelStats, Snapshot, WorkerStats

NAMES = st.sampled_from(["a", "b", "c"])
ROWS = st.dictionaries(NAMES, st.one_of(st.integers(0, 3), st.none(), st.text(max_size=2)), max_size=3)
TABLE = st.dictionaries(NAMES, ROWS, max_size=3)
TABLES = st.fixed_dictionaries({"models": TABLE, "workers": TABLE})


def applied(state: Tables, changed: dict[str, dict[str, dict[str, object] | None]]) -> Tables:
    """What the page does with changes, see `merged` in `live.js`."""
    after = copy.deepcopy(state)
    for table, rows in changed.items():
        for name, fields in rows.items():
            if fields is None:
                del after[table][name]
            else:
                after[table].setdefault(name, {}).update(fields)
    return after


def known(state: Tables) -> Tables:
    """Without fields that are null: to the page, these are the same as missing ones."""
    return {
        table: {name: {key: value for key, value in row.items() if value is not None} for name, row in rows.items()}
        for table, rows in state.items()
    }


@given(before=TABLES, after=TABLES)
def test_changes_lead_to_the_next_state(before: Tables, after: Tables) -> None:
    assert known(applied(before, changes(before, after))) == known(after)


@given(state=TABLES)
def test_equal_states_need_no_message(state: Tables) -> None:
    assert changes(state, copy.deepcopy(state)) == {}


def snapshot(queued: int = 0, step_s: float = 0.1) -> Snapshot:
    model = ModelStats("m", queued, 1, None, 0.0, 0.123456, 0.0)
    worker = WorkerStats(
        "w", "m", "sim:0", 7, "ready", 4, 0, 1, 0.1, step_s, 1.0, 1 << 30, WorkerCounters(finished=3), StartupTimes()
    )
    return Snapshot(1000.0, 10.0, [model], [worker])


def test_state_without_a_controller() -> None:
    state = live_state(snapshot(), None)
    assert state["server"]["server"] == {"controller": False, "paused_since": None, "started": 990}
    assert state["models"]["m"]["arrival_rate"] == 0.123
    assert state["workers"]["w"]["finished"] == 3
    assert state["devices"] == {}


def report(*machines: MachineRecord) -> ControllerReport:
    return ControllerReport(1000.0, 60.0, (), (), (), None, 0, (), 0, machines=machines)


@pytest.mark.parametrize(
    ("age_s", "silent", "last_report"),
    [(0.4, False, None), (4.9, False, None), (7.0, False, 993), (2.0, True, 998), (None, False, None)],
)
def test_time_of_a_report_is_shown_if_it_is_late(age_s: float | None, silent: bool, last_report: int | None) -> None:
    box = MachineRecord("box", age_s, silent, "", ("m",), {}, 8 << 30, (3 << 30) + 5)
    state = live_state(snapshot(), report(box))
    assert state["machines"]["box"] == {
        "has_reported": age_s is not None,
        "last_report": last_report,
        "unused_reason": "",
        "models": ["m"],
        "unusable_models": {},
        "memory_bytes": 8 << 30,
        "available_bytes": 3 << 30,
    }


def test_only_what_has_changed_is_told() -> None:
    before, after = live_state(snapshot(), None), live_state(snapshot(queued=2, step_s=0.10001), None)
    assert changes(before, after) == {"models": {"m": {"queued": 2}}}


def test_sensors_of_devices_are_shown_where_known() -> None:
    devices = (DeviceRecord("cuda:0", "H100", (), 80 << 30, "", 61.0, 412.345, 0.876), DeviceRecord("cpu:0", "", ()))
    report = ControllerReport(1000.0, 1.0, (), (), devices, None, 0, (), 0)
    rows = live_state(snapshot(), report)["devices"]
    assert {name: rows["cuda:0"][name] for name in ("temperature_c", "power_w", "utilisation")} == {
        "temperature_c": 61.0,
        "power_w": 412.0,
        "utilisation": 0.876,
    }
    assert rows["cpu:0"].keys() == {"name", "workers", "memory_bytes", "fault"}


def test_recent_starts_are_part_of_the_models() -> None:
    row = live_state(snapshot(), None, {"m": Starts(100, 7)})["models"]["m"]
    assert (row["recent_started"], row["recent_late"]) == (100, 7)
