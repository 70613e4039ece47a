"""Fetches the files of models that this machine lacks from the server: in parts, resumable, checked by their hashes.

One model after the other. The parts of a file go into `NAME.part`, which a later agent continues. A file counts once
its SHA-256 is right, and a model once all of its files do. What counts is on the disk: a power cut does not undo it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from configs.files import sync_folder
from wire.agents import FETCHED_SUFFIXES, FileInfo, FileList, FilePart, FromAgent, ListFiles, ReadFile

log = logging.getLogger(__name__)

PART_BYTES = 256 << 10
#: Parts that are under way at once. So few leave the server's socket to its workers.
_WINDOW = 4
#: A question without an answer is asked again.
_ANSWER_S = 30.0
#: The server hashes the files of a model before it lists them.
_LIST_S = 600.0
_RETRY_S = 60.0
#: Bytes of the disk that are left to others.
_DISK_RESERVE = 2 << 30
_HASH_CHUNK = 1 << 20
_MAX_HASH_FAILURES = 2


class FetchProblem(Exception):
    """The files cannot be fetched. The text says why."""


@dataclass(slots=True)
class _Download:
    """The model that is fetched now."""

    model: str
    folder: Path
    asked_at: float
    files: Sequence[FileInfo] = ()
    is_listed: bool = False
    #: Numbers of the files that are missing, and the offset of the next part of the first.
    missing: deque[int] = field(default_factory=deque)
    offset: int = 0
    #: When each part was asked for, by offset; and parts that came before an earlier one.
    asked: dict[int, float] = field(default_factory=dict)
    early: dict[int, bytes] = field(default_factory=dict)
    written: int = 0
    failures: int = 0
    #: A thread that hashes the file, its result, and why there is none.
    hashing: threading.Thread | None = None
    digest: str = ""
    hash_problem: str = ""


class WeightFetch:
    """Owned by the agent's loop, except for the thread that hashes. `send` sends a message to the server."""

    def __init__(self, folder: Path, max_bytes: int, send: Callable[[FromAgent], None]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._send = send
        self._wanted: list[str] = []
        self._download: _Download | None = None
        self._retry_at: dict[str, float] = {}
        #: Why the files of a model are not here yet.
        self.states: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<WeightFetch into {self._folder}, {len(self._wanted)} models>"

    def want(self, folders: dict[str, str]) -> None:
        """Fetch the files of these models, into the folders of these names, in this order."""
        self._names = folders
        self._wanted = list(folders) if self._max_bytes else []
        self.states = {model: text for model, text in self.states.items() if model in folders}
        if self._download is not None and self._download.model not in folders:
            self._download = None

    def on_reconnect(self) -> None:
        """Ask again: what was under way is lost."""
        if self._download is not None:
            self._download.asked.clear()
            self._download.asked_at = -_LIST_S

    def run(self) -> str | None:
        """Do what is due. Return a model whose files are complete now."""
        now = time.monotonic()
        if self._download is None:
            due = next((model for model in self._wanted if now >= self._retry_at.get(model, 0.0)), None)
            if due is None:
                return None
            self._download = _Download(due, self._folder / self._names[due], -_LIST_S)
        download = self._download
        try:
            if not download.is_listed:
                if now >= download.asked_at + _LIST_S:
                    download.asked_at = now
                    self._send(ListFiles(download.model))
                return None
            self._continue(download, now)
            if download.missing:
                return None
            self._finish(download)
        except (FetchProblem, OSError) as error:
            self._fail(download, str(error))
            return None
        return download.model

    def on_list(self, message: FileList) -> None:
        """Take in the files of the model."""
        download = self._download
        if download is None or download.model != message.model or download.is_listed:
            return
        try:
            if message.problem or not message.files:
                raise FetchProblem(message.problem or "the server has no files of it")
            _check_names(message.files)
            self._check_room(download, message.files)
            download.folder.mkdir(parents=True, exist_ok=True)
        except (FetchProblem, OSError) as error:
            self._fail(download, str(error))
            return
        download.files, download.is_listed = message.files, True
        download.missing = deque(
            number for number, each in enumerate(message.files) if not _is_complete(download.folder / each.path, each)
        )
        download.written = sum(each.size for each in message.files) - sum(
            message.files[number].size for number in download.missing
        )
        self._begin_file(download)

    def on_part(self, message: FilePart, data: bytes) -> None:
        """Take in a part of the present file."""
        download = self._download
        if download is None or message.model != download.model or not download.missing:
            return
        if message.file != download.missing[0] or download.asked.pop(message.offset, None) is None:
            return
        if message.problem:
            self._fail(download, message.problem)
            return
        download.early[message.offset] = data
        try:
            self._write(download)
        except OSError as error:
            self._fail(download, str(error))

    # ---- parts

    def _check_room(self, download: _Download, files: Sequence[FileInfo]) -> None:
        """Raise `FetchProblem` if the files are too large for the configuration or for the disk."""
        total = sum(each.size for each in files)
        held = _size(self._folder) - _size(download.folder)
        if held + total > self._max_bytes:
            raise FetchProblem(
                f"its files have {_gib(total)}, and agent.max_fetched_bytes leaves {_gib(self._max_bytes - held)}"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        missing, free = total - _size(download.folder), shutil.disk_usage(self._folder).free - _DISK_RESERVE
        if missing > free:
            raise FetchProblem(f"{_gib(missing)} are to be fetched, and the disk has room for {_gib(max(free, 0))}")

    def _begin_file(self, download: _Download) -> None:
        """Continue the first missing file where its part ends."""
        download.asked.clear()
        download.early.clear()
        if not download.missing:
            return
        each = download.files[download.missing[0]]
        part = _part(download.folder / each.path)
        part.parent.mkdir(parents=True, exist_ok=True)
        download.offset = part.stat().st_size if part.exists() else 0
        if download.offset > each.size:
            part.unlink()
            download.offset = 0

    def _continue(self, download: _Download, now: float) -> None:
        """Ask for the next parts of the file, or check it when it is whole."""
        if not download.missing:
            return
        number = download.missing[0]
        each = download.files[number]
        if download.offset >= each.size:
            self._check_hash(download, each)
            return
        done = download.written + download.offset
        self.states[download.model] = f"its files are being fetched: {_gib(done)} of {_gib(self._total(download))}"
        offsets = range(download.offset, min(download.offset + _WINDOW * PART_BYTES, each.size), PART_BYTES)
        for offset in offsets:
            is_due = now >= download.asked.get(offset, -_ANSWER_S) + _ANSWER_S
            if is_due and offset not in download.early:
                download.asked[offset] = now
                self._send(ReadFile(download.model, number, offset, min(PART_BYTES, each.size - offset)))

    def _write(self, download: _Download) -> None:
        """Append the parts that are in order. Raises `OSError`."""
        each = download.files[download.missing[0]]
        with _part(download.folder / each.path).open("ab") as file:
            while (data := download.early.pop(download.offset, None)) is not None:
                file.write(data)
                download.offset += len(data)

    def _check_hash(self, download: _Download, each: FileInfo) -> None:
        """Hash the file in a thread; when that is done, go on to the next file. Raises `FetchProblem` and `OSError`."""
        part = _part(download.folder / each.path)
        part.touch()  # an empty file has no parts
        if download.hashing is None:
            download.digest = download.hash_problem = ""
            download.hashing = threading.Thread(target=_hash_into, args=(download, part), daemon=True)
            download.hashing.start()
            return
        if download.hashing.is_alive():
            return
        download.hashing = None
        if download.digest != each.sha256:
            part.unlink(missing_ok=True)
            download.failures += 1
            if download.failures > _MAX_HASH_FAILURES:
                raise FetchProblem(download.hash_problem or f"{each.path} arrives with another SHA-256 than announced")
        else:
            part.replace(download.folder / each.path)
            download.missing.popleft()
            download.written += each.size
        self._begin_file(download)

    def _total(self, download: _Download) -> int:
        return sum(each.size for each in download.files)

    def _finish(self, download: _Download) -> None:
        """Note that the model is complete, after the names of its files are on the disk. Raises `OSError`."""
        files = [PurePosixPath(each.path) for each in download.files]
        for folder in {self._folder, *(download.folder / parent for file in files for parent in file.parents)}:
            sync_folder(folder)
        (download.folder / "complete").touch()
        log.info("fetched %s of %s", _gib(self._total(download)), download.model)
        self._download = None
        self._wanted.remove(download.model)
        self.states.pop(download.model, None)

    def _fail(self, download: _Download, reason: str) -> None:
        state = f"its files cannot be fetched: {reason}"
        if self.states.get(download.model) != state:
            log.error("the files of %s are not fetched: %s; next try in %.0f s", download.model, reason, _RETRY_S)
        self.states[download.model] = state
        self._retry_at[download.model] = time.monotonic() + _RETRY_S
        self._download = None


def _check_names(files: Sequence[FileInfo]) -> None:
    """Raise `FetchProblem` for a name that leaves its folder or is of another kind."""
    for each in files:
        path = PurePosixPath(each.path)
        parts = path.parts
        is_safe = not path.is_absolute() and len(parts) >= 2 and not any(p.startswith(".") or "\0" in p for p in parts)
        if not is_safe or path.suffix not in FETCHED_SUFFIXES:
            raise FetchProblem(f"the server names a file that is not taken: {each.path[:200]!r}")
    if len({each.path for each in files}) != len(files):
        raise FetchProblem("the server names a file twice")


def _is_complete(file: Path, each: FileInfo) -> bool:
    """Return whether the file was fetched and checked: it has its name only then."""
    try:
        return file.stat().st_size == each.size
    except OSError:
        return False


def _part(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def _hash_into(download: _Download, file: Path) -> None:
    """Note the SHA-256 of the file, and put its content on the disk."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as content:
            while chunk := content.read(_HASH_CHUNK):
                digest.update(chunk)
            os.fsync(content.fileno())
    except OSError as error:  # what was read may not be what is on the disk
        download.hash_problem = f"{file}: {error.strerror or error}"
    else:
        download.digest = digest.hexdigest()


def _size(folder: Path) -> int:
    """Return the bytes of all files below the folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
