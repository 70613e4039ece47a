"""The exporter process as the balancer sees it: records go into its pipe, or are dropped while it does not read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from loadbalancer.background_tasks import TaskSupervisor, restart_delay
from loadbalancer.tracing.records import TraceRecord

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_MODULE = "loadbalancer.tracing.exporter"
#: Length of a record, before each.
_HEADER_BYTES = 4
#: Records leave together after this time, which bounds the wake-ups of the exporter.
_FLUSH_S = 0.1
#: Records and bytes that wait for the exporter; beyond them new ones are dropped.
_MAX_RECORDS = 4096
_MAX_BYTES = 4 << 20
#: Time of the exporter for what is left at the end.
_END_S = 3.0
#: An exporter that has run for so long was healthy.
_HEALTHY_S = 60.0
#: What the exporter needs of the environment. API keys of upstream servers stay out of it.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "VIRTUAL_ENV", "TZ", "HOME")
_NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def exporter_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the exporter: those of OpenTelemetry, and what the interpreter and the network need."""
    names = {*_ENVIRONMENT, *_NETWORK, *(name.lower() for name in _NETWORK)}
    own = {name: value for name, value in environment.items() if name in names or name.startswith("OTEL_")}
    return own | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))}


class ExporterProcess:
    """Starts the exporter, and again when it ends. All methods are called in the event loop."""

    def __init__(self, environment: Mapping[str, str], *, as_json: bool, command: Sequence[str] = ()) -> None:
        """`as_json`: form of its log lines. `command` replaces the exporter in tests."""
        self._command = command or (sys.executable, "-m", _MODULE, "json" if as_json else "text")
        self._environment = exporter_environment(environment)
        self._encoder = msgspec.msgpack.Encoder()
        #: The lengths of the records, and the records.
        self._pending: list[bytes] = []
        self._process: asyncio.subprocess.Process | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._supervisor = TaskSupervisor()
        self._stopped = False
        #: Records that were dropped, because the exporter does not read or is being started.
        self.counters: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<ExporterProcess {self._process and self._process.pid}, {len(self._pending)} records wait>"

    @property
    def pid(self) -> int | None:
        """The process id of the exporter, if it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait for the exporter."""
        pipe = self._process.stdin if self._process is not None else None
        buffered = 0 if pipe is None else pipe.transport.get_write_buffer_size()
        return buffered + sum(map(len, self._pending))

    @property
    def task_failures(self) -> Counter[str]:
        return self._supervisor.failures

    def start(self) -> None:
        self._supervisor.run_forever("trace_exporter", self._run)

    def put(self, record: TraceRecord) -> None:
        """Hand over a record soon, or drop it. Raises nothing."""
        if len(self._pending) >= 2 * _MAX_RECORDS:
            self.counters["trace_records_dropped"] += 1
            return
        body = self._encoder.encode(record)
        self._pending.append(len(body).to_bytes(_HEADER_BYTES))
        self._pending.append(body)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    async def stop(self) -> None:
        """Hand over what is left, and let the exporter send it for a moment."""
        self._flush()
        self._stopped = True
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _END_S)
        await self._supervisor.stop()
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pipe = self._process.stdin if self._process is not None else None
        if pipe is None or pipe.is_closing():
            return  # they wait for the next exporter, and the newest are dropped
        pending, self._pending = self._pending, []
        if pipe.transport.get_write_buffer_size() > _MAX_BYTES:
            self.counters["trace_records_dropped"] += len(pending) // 2
        elif pending:
            pipe.write(b"".join(pending))

    def _is_stopped(self) -> bool:
        return self._stopped

    async def _run(self) -> None:
        failures = 0
        while not self._stopped:
            started = time.monotonic()
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                env=self._environment,
            )
            self._flush()
            status = await process.wait()
            self._process = None
            if self._is_stopped():
                return
            failures = 1 if time.monotonic() - started >= _HEALTHY_S else failures + 1
            pause_s = restart_delay(failures)
            log.warning("the exporter of traces has ended with status %d; the next one starts in %g s", status, pause_s)
            await asyncio.sleep(pause_s)
