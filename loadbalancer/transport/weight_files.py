"""The files of models that machines with an agent may fetch: weights, configurations and tokenizers, nothing else.

Every method reads files, and is called in a thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from configs.model_paths import local_paths
from configs.model_settings import Model
from wire.agents import FETCHED_SUFFIXES, MAX_FILES, FileInfo, FileList, FilePart

_HASH_CHUNK = 1 << 20


class _Version(NamedTuple):
    """Identifies the content of a file."""

    path: str
    size: int
    changed_ns: int


class WeightFiles:
    """Lists and reads files below the paths of the configured models. A client names a model and a number only."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models
        self._lock = threading.Lock()
        #: By model: the listed files.
        self._listed: dict[str, list[Path]] = {}
        self._hashes: dict[_Version, str] = {}

    def __repr__(self) -> str:
        return f"<WeightFiles of {len(self._models)} models>"

    def list_files(self, model: str) -> FileList:
        """Return the files of the model with their hashes. The first call of a large model takes long."""
        configured = self._models.get(model)
        if configured is None:
            return FileList(model, problem=f"models.{model} does not exist")
        tree = json.loads(configured.model_dump_json())
        try:
            found = [each for field, path in local_paths(tree).items() for each in _files(field, Path(path))]
            if len(found) > MAX_FILES:
                return FileList(model, problem=f"models.{model} has {len(found)} files; at most {MAX_FILES} are sent")
            infos = [FileInfo(name, file.stat().st_size, self._sha256(file)) for name, file in found]
        except OSError as error:
            return FileList(model, problem=f"a file of models.{model} cannot be read: {error.strerror}")
        with self._lock:
            self._listed[model] = [file for _, file in found]
        return FileList(model, infos)

    def read_part(self, model: str, file: int, offset: int, size: int) -> tuple[FilePart, bytes]:
        """Return a part of a listed file."""
        with self._lock:
            files = self._listed.get(model, [])
        if not 0 <= file < len(files):
            return FilePart(model, file, offset, "its files are not listed"), b""
        try:
            with files[file].open("rb") as content:
                content.seek(offset)
                data = content.read(size)
        except OSError as error:
            return FilePart(model, file, offset, f"it cannot be read: {error.strerror}"), b""
        return FilePart(model, file, offset, "" if data else "the file has become shorter"), data

    def _sha256(self, file: Path) -> str:
        status = file.stat()
        version = _Version(str(file), status.st_size, status.st_mtime_ns)
        if version not in self._hashes:
            digest = hashlib.sha256()
            with file.open("rb") as content:
                while chunk := content.read(_HASH_CHUNK):
                    digest.update(chunk)
            self._hashes[version] = digest.hexdigest()
        return self._hashes[version]


def _files(field: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files with their names at the receiver: `FIELD/NAME/...`. Hidden ones and other kinds are left out."""
    if root.is_file():
        if root.suffix in FETCHED_SUFFIXES:
            yield f"{field}/{root.name}", root
        return
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder) / name
            is_regular = stat.S_ISREG(file.stat().st_mode)
            if is_regular and file.suffix in FETCHED_SUFFIXES and not name.startswith("."):
                yield f"{field}/{root.name}/{file.relative_to(root)}", file
