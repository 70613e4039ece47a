"""Renders the status of a server as tables. Pure."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from configs.devices import machine_of
from configs.text import printable
from wire.scaling import ControllerReport, DecisionRecord, DeviceRecord, MachineRecord, ModelRecord
from wire.snapshot import Snapshot, WorkerStats

#: Columns that may fold.
_FOLDING = ("reason", "note", "name", "workers", "fault", "trigger", "models")
#: Longer texts of the server are cut.
_MAX_TEXT_CHARS = 1000
_STAGE_STYLE = {"ready": "green", "starting": "yellow", "draining": "yellow", "spare": "dim"}


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The answers of a server. Without a controller there is no report."""

    url: str
    snapshot: Snapshot
    report: ControllerReport | None
    decisions: Sequence[DecisionRecord]


def render(status: ServerStatus) -> RenderableType:
    parts: list[RenderableType] = [_headline(status), _models(status)]
    if status.report is not None:
        parts.append(_reasons(status.report))
    parts.append(_workers(status))
    if status.report is not None:
        parts += [_machines(status.report)] if status.report.machines else []
        parts += [_devices(status.report), _decisions(status.decisions)]
    return Group(*(piece for part in parts for piece in (part, "")))


def _headline(status: ServerStatus) -> Text:
    text = _text(f"Muster at {status.url}, up {format_duration(status.snapshot.uptime_s)}")
    report = status.report
    if report is None:
        text.append("\nno controller reports: no worker is started or stopped", style="bold red")
    elif report.paused_since is not None:
        paused = format_duration(max(report.time - report.paused_since, 0.0))
        text.append(f"\nscaling is paused for {paused}: `resume` ends it", style="bold yellow")
    return text


def _models(status: ServerStatus) -> Table:
    table = _table("Models", "model", "ready", "desired", "bounds", "queued", "running", "oldest", "tasks/s")
    records = {model.model: model for model in status.report.models} if status.report else {}
    for stats in status.snapshot.models:
        record = records.get(stats.model)
        ready = sum(w.model == stats.model and w.state == "ready" and w.slots > 0 for w in status.snapshot.workers)
        _add_row(
            table,
            stats.model,
            str(ready) if record is None else _ready(record),
            "" if record is None else str(record.desired),
            "" if record is None else f"{record.min_workers} to {record.max_workers}",
            str(stats.queued),
            str(stats.running),
            format_duration(stats.oldest_wait_s) if stats.queued else "",
            f"{stats.service_rate:.2f}",
        )
    return table


def _reasons(report: ControllerReport) -> Table:
    table = _table("Reasons", "model", "policy", "reason")
    for record in report.models:
        _add_row(table, record.model, record.policy, _why(record, report.time))
    return table


def _ready(record: ModelRecord) -> str:
    """Return the number of workers by stage, such as `2, +1 starting`."""
    parts = [str(record.ready)]
    parts += [f"+{record.starting} starting"] if record.starting else []
    parts += [f"{record.draining} draining"] if record.draining else []
    parts += [f"{record.spares} standby"] if record.spares else []
    return ", ".join(parts)


def _why(record: ModelRecord, now: float) -> Text:
    text = _text(record.reason)
    if record.override is not None:
        text.append(f"\noverride ends in {format_duration(max(record.override.until - now, 0.0))}", style="yellow")
    if record.rolling_update:
        text.append("\n").append_text(_text(record.rolling_update, style="yellow"))
    if record.cannot_start:
        text.append("\n").append_text(_text(f"cannot start: {record.cannot_start}", style="bold red"))
    if record.blocked_reason:
        text.append("\n").append_text(_text(record.blocked_reason, style="red"))
    return text


def _workers(status: ServerStatus) -> Table:
    table = _table("Workers", "worker", "model", "device", "state", "tasks", "batch", "step", "memory", "age", "note")
    known = {stats.worker: stats for stats in status.snapshot.workers}
    for replica in status.report.replicas if status.report else ():
        stats = known.pop(replica.worker, None)
        state = stats.state if stats is not None and stats.state in ("stuck", "silent") else replica.stage
        _add_row(
            table,
            replica.worker,
            replica.model,
            replica.device,
            _state(state),
            *_work(stats),
            format_duration(replica.age_s, 1),
            replica.outdated,
        )
    for stats in known.values():
        note = "started manually" if status.report else ""
        _add_row(table, stats.worker, stats.model, stats.device, _state(stats.state), *_work(stats), "", note)
    return table


def _state(state: str) -> Text:
    return _text(state, style=_STAGE_STYLE.get(state, "bold red"))


def _work(stats: WorkerStats | None) -> tuple[str, str, str, str]:
    if stats is None:
        return "", "", "", ""
    step = f"{stats.step_s * 1000:.0f} ms" if stats.step_s else ""
    memory = f"{stats.memory_bytes / 2**30:.1f} GiB" if stats.memory_bytes >= 1 << 27 else ""
    return str(stats.assigned + stats.running), f"{stats.batch:.1f}" if stats.batch else "", step, memory


def _machines(report: ControllerReport) -> Table:
    table = _table(
        "Machines", "machine", "last report", "devices", "in use", "memory", "main memory", "models", "fault"
    )
    devices: defaultdict[str, list[DeviceRecord]] = defaultdict(list)
    for device in report.devices:
        devices[machine_of(device.device)].append(device)
    _add_row(table, "(this server)", "", *_device_sums(devices[""]), "", "", "")
    for record in report.machines:
        unusable = [f"{model} cannot run there: {reason}" for model, reason in record.unusable_models.items()]
        _add_row(
            table,
            record.machine,
            "none" if record.last_report_age_s is None else f"{format_duration(record.last_report_age_s, 1)} ago",
            *_device_sums(devices[record.machine]),
            _main_memory(record),
            ", ".join(record.models),
            _text("; ".join(filter(None, [record.unused_reason, *unusable])), style="bold red"),
        )
    return table


def _device_sums(devices: Sequence[DeviceRecord]) -> tuple[str, str, str]:
    """Return the number of devices, of those with a worker, and their memory."""
    memory = sum(device.memory_bytes or 0 for device in devices)
    return str(len(devices)), str(sum(bool(device.workers) for device in devices)), _gib(memory) if memory else ""


def _main_memory(record: MachineRecord) -> str:
    if record.memory_bytes is None:
        return ""
    available = "" if record.available_bytes is None else f"{_gib(record.available_bytes)} of "
    return f"{available}{_gib(record.memory_bytes)}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.0f} GiB"


def _devices(report: ControllerReport) -> Table:
    table = _table("Devices", "device", "name", "memory", "workers", "fault")
    for device in report.devices:
        memory = "" if device.memory_bytes is None else _gib(device.memory_bytes)
        fault = _text(device.unhealthy_reason, style="bold red") if device.unhealthy_reason else ""
        _add_row(table, device.device, device.name, memory, ", ".join(device.workers), fault)
    return table


def _decisions(decisions: Sequence[DecisionRecord]) -> Table:
    table = _table("Last decisions", "time", "model", "number", "trigger", "reason")
    for decision in decisions:
        at = datetime.datetime.fromtimestamp(decision.time).astimezone()
        _add_row(table, f"{at:%H:%M:%S}", decision.model, _change(decision), decision.trigger, _reason(decision))
    return table


def _change(decision: DecisionRecord) -> Text:
    if not decision.valid:
        return Text(f"{decision.provisioned} (no decision)", style="dim")
    if decision.desired == decision.provisioned:
        return Text(f"stays at {decision.desired}", style="dim")
    style = "green" if decision.desired > decision.provisioned else "yellow"
    return Text(f"{decision.provisioned} -> {decision.desired}", style=style)


def _reason(decision: DecisionRecord) -> Text:
    text = _text(decision.reason)
    if decision.inputs:
        inputs = ", ".join(f"{name} {value:.4g}" for name, value in decision.inputs.items())
        text.append_text(_text(f" [{inputs}]", style="dim"))
    return text


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in _FOLDING)
    return table


def _add_row(table: Table, *cells: str | Text) -> None:
    table.add_row(*(_text(cell) if isinstance(cell, str) else cell for cell in cells))


def _text(text: str, style: str = "") -> Text:
    """Return the text without markup or control characters. Names and reasons come from other machines."""
    return Text(printable(text, _MAX_TEXT_CHARS), style=style)


def notable_decisions(decisions: Sequence[DecisionRecord], limit: int) -> list[DecisionRecord]:
    """Return the newest decisions that change something, and each model's newest one that does not.

    Input and output are sorted newest first.
    """
    found: list[DecisionRecord] = []
    confirmed: set[str] = set()
    for decision in decisions:
        if decision.valid and decision.desired != decision.provisioned:
            found.append(decision)
        elif decision.model not in confirmed:
            confirmed.add(decision.model)
            found.append(decision)
    return found[:limit]


def format_duration(seconds: float, units: int = 2) -> str:
    """Return the duration in its largest units."""
    parts, left = [], round(seconds)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:units]) or "0 s"
