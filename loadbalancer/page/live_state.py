"""What the page shows of the present, and what has changed since a moment ago. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadbalancer.page.recent_starts import Starts
from wire.scaling import ControllerReport, DecisionRecord, MachineRecord
from wire.snapshot import ModelStats, Snapshot, WorkerStats

#: Tables of rows by name, and rows of fields by name.
Row = dict[str, Any]
Tables = dict[str, dict[str, Row]]

#: What the controller says of a model.
_OF_CONTROLLER = (
    *("min_workers", "max_workers", "desired", "ready", "starting", "draining", "policy", "reason"),
    *("blocked_reason", "crashes", "rolling_update", "spares", "cold_start_s", "cannot_start"),
)
_SENSORS = ("temperature_c", "power_w", "utilisation")
#: Significant digits of numbers: finer changes are not worth a message.
_DIGITS = 3
#: The time of a machine's last report is shown from this age.
_LATE_REPORT_S = 5.0


def live_state(
    snapshot: Snapshot, report: ControllerReport | None, recent_starts: Mapping[str, Starts] | None = None
) -> Tables:
    """Return the models, workers, devices and other machines, by name.

    Without a controller, what it alone knows is left out. `recent_starts`: those of `RecentStarts`, by model.
    """
    models = {each.model: _model(each) for each in snapshot.models}
    for model, starts in (recent_starts or {}).items():
        models[model] |= {"recent_started": starts.started, "recent_late": starts.late}
    workers = {each.worker: _worker(each) for each in snapshot.workers}
    devices: dict[str, Row] = {}
    machines: dict[str, Row] = {}
    if report is not None:
        for record in report.models:
            row = models.setdefault(record.model, {})
            row |= {name: getattr(record, name) for name in _OF_CONTROLLER}
            row["override"] = None if record.override is None else [record.override.workers, record.override.until]
        for replica in report.replicas:
            row = workers.setdefault(replica.worker, {"model": replica.model, "device": replica.device})
            row |= {"stage": replica.stage, "pid": replica.pid, "outdated": replica.outdated}
            row["started"] = round(report.time - replica.age_s)
        for device in report.devices:
            devices[device.device] = {
                "name": device.name,
                "workers": list(device.workers),
                "memory_bytes": device.memory_bytes,
                "fault": device.unhealthy_reason,
            }
            sensors = {name: _rounded(getattr(device, name)) for name in _SENSORS}
            devices[device.device] |= {name: value for name, value in sensors.items() if value is not None}
        machines = {each.machine: _machine(each, report) for each in report.machines}
    server: Row = {
        "controller": report is not None,
        "paused_since": None if report is None else report.paused_since,
        "started": round(snapshot.time - snapshot.uptime_s),
    }
    return {
        "server": {"server": server},
        "models": models,
        "workers": workers,
        "devices": devices,
        "machines": machines,
    }


def changes(before: Tables, after: Tables) -> dict[str, dict[str, Row | None]]:
    """Return the fields that differ, by table and row; None for a row that is gone."""
    found: dict[str, dict[str, Row | None]] = {}
    for table, rows in after.items():
        old = before.get(table, {})
        changed: dict[str, Row | None] = {name: None for name in old if name not in rows}
        for name, row in rows.items():
            fields = _changed_fields(old.get(name, {}), row)
            if fields or name not in old:
                changed[name] = fields
        if changed:
            found[table] = changed
    return found


def decision_row(decision: DecisionRecord) -> Row:
    """Return a decision for the chart and the list of reasons."""
    names = ("number", "time", "model", "trigger", "provisioned", "ready", "desired", "valid", "reason")
    return {name: getattr(decision, name) for name in names}


def _changed_fields(before: Mapping[str, Any], after: Row) -> Row:
    gone = {name: None for name in before if name not in after}
    return gone | {name: value for name, value in after.items() if name not in before or before[name] != value}


def _model(stats: ModelStats) -> Row:
    return {
        "queued": stats.queued,
        "running": stats.running,
        "work_s": _rounded(stats.backlog_work_s),
        "oldest_wait_s": _rounded(stats.oldest_wait_s),
        "arrival_rate": _rounded(stats.arrival_rate),
        "service_rate": _rounded(stats.service_rate),
        "mean_work_s": _rounded(stats.mean_work_s),
        "batch_cap": stats.batch_cap,
    }


def _worker(stats: WorkerStats) -> Row:
    row: Row = {
        "model": stats.model,
        "device": stats.device,
        "pid": stats.pid,
        "state": stats.state,
        "slots": stats.slots,
        "assigned": stats.assigned,
        "running": stats.running,
        "batch": _rounded(stats.batch),
        "step_s": _rounded(stats.step_s),
        "memory_bytes": stats.memory_bytes >> 20 << 20,
        "finished": stats.counters.finished,
        "failed": stats.counters.failed,
        "start_s": _rounded(stats.start.total_s),
    }
    if stats.text is not None:
        row |= {"blocks": stats.text.blocks, "used_blocks": stats.text.used_blocks}
    return row


def _machine(record: MachineRecord, report: ControllerReport) -> Row:
    # The time of each report would be a change each second.
    age_s = record.last_report_age_s
    is_late = age_s is not None and (record.silent or age_s >= _LATE_REPORT_S)
    return {
        "has_reported": age_s is not None,
        "last_report": round(report.time - age_s) if is_late and age_s is not None else None,
        "unused_reason": record.unused_reason,
        "models": list(record.models),
        "unusable_models": record.unusable_models,
        "memory_bytes": record.memory_bytes,
        "available_bytes": None if record.available_bytes is None else record.available_bytes >> 30 << 30,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
