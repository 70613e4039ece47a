"""The arrival log: a thread writes one CSV line per accepted image when the image ends.

The simulator replays the log. It holds no prompt, key or address. The file is rotated at half of its size limit, and
`NAME.1` holds the previous half.
"""

from __future__ import annotations

import logging
import queue
from io import TextIOWrapper
from logging.handlers import QueueListener, RotatingFileHandler
from pathlib import Path

from configs.files import open_without_waiting
from loadbalancer.scheduling.task import Task

log = logging.getLogger(__name__)

#: `arrived` is Unix time. `exec_s` is the measured work: the seconds that the image would take alone on a worker.
#: `exec_s` and `ran_s` are empty if no worker started the image.
COLUMNS = "arrived,model,steps,shape,request_tasks,waited_s,ran_s,exec_s,outcome"
#: Maximum lines that wait for the disk. Further lines are counted and dropped.
_MAX_QUEUED_LINES = 10_000


class ArrivalLog:
    """The file, and the thread that writes it."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._waiting: queue.Queue[logging.LogRecord] = queue.Queue(_MAX_QUEUED_LINES)
        self._file = _File(path, max_bytes // 2)
        self._writer = QueueListener(self._waiting, self._file)
        #: Lines that were not written because the disk is too slow.
        self.dropped = 0

    def start(self) -> None:
        self._writer.start()
        log.info("arrivals are recorded in %s", self._path)

    def stop(self) -> None:
        """Write the queued lines and close the file. Blocks on the disk."""
        self._writer.stop()
        self._file.close()

    def put(self, task: Task, now: float, wall_time: float) -> None:
        """Log a task that has ended. `now` is on the clock of its times, `wall_time` is Unix seconds."""
        try:
            self._waiting.put_nowait(logging.makeLogRecord({"msg": line(task, now, wall_time)}))
        except queue.Full:
            self.dropped += 1


def line(task: Task, now: float, wall_time: float) -> str:
    age_s, began = now - task.created, task.first_started
    times = f"{age_s:.3f},," if began is None else f"{began - task.created:.3f},{now - began:.3f},{task.work_s:.3f}"
    what = f"{task.model},{task.steps},{task.shape.key},{task.siblings}"
    return f"{wall_time - age_s:.3f},{what},{times},{task.state.value}"


class _File(RotatingFileHandler):
    """Starts each file with the column names. A write error is logged once, and no request fails."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=1, encoding="utf-8", delay=True)
        self._broken = False

    def _open(self) -> TextIOWrapper:
        stream = open(self.baseFilename, "a", encoding="utf-8", opener=open_without_waiting)  # noqa: SIM115 - the handler closes it
        if not stream.tell():
            stream.write(f"{COLUMNS}\n")
        return stream

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        del record
        if not self._broken:
            self._broken = True
            log.exception("arrivals cannot be recorded")
