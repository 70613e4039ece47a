"""Checks a safetensors file by its header and its size, without reading the tensors."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

#: The library's own limit.
_MAX_HEADER_BYTES = 100_000_000
_MB = 1_000_000


class InvalidFile(ValueError):
    """The file cannot be loaded. The text names it, the reason and the way out."""


def check_safetensors(file: Path) -> Sequence[str]:
    """Return the names of the tensors. Raises `InvalidFile` if the file is not complete safetensors."""
    try:
        with open_regular(file) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            start = stream.read(512)
            if reason := explain_start(start):
                raise InvalidFile(f"{file} {reason}")
            length = int.from_bytes(start[:8], "little")
            if len(start) < 10 or not 2 <= length <= _MAX_HEADER_BYTES or start[8:9] != b"{":
                raise InvalidFile(f"{file} is not a safetensors file, or is damaged; download it again")
            if 8 + length > size:
                raise InvalidFile(f"{file} is cut short: its header alone has {length:,} bytes; download it again")
            stream.seek(8)
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise InvalidFile(f"{file} is a link to a file that is not there; download it again") from None
    except OSError as error:
        raise InvalidFile(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidFile):
            raise
        raise InvalidFile(f"{file} has a damaged header; download it again") from None
    return _check_header(file, header, size - 8 - length, size)


def open_regular(file: Path) -> BinaryIO:
    """Open the file for reading. Raises `InvalidFile` for a pipe or a device, which could block, and `OSError`."""
    if not stat.S_ISREG(file.stat().st_mode) and not file.is_dir():
        raise InvalidFile(f"{file} is not a regular file; download it again")
    return file.open("rb")


def _check_header(file: Path, header: Any, data_bytes: int, size: int) -> Sequence[str]:
    if not isinstance(header, dict):
        raise InvalidFile(f"{file} has a damaged header; download it again")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        needed = max((_end(entry) for entry in tensors.values()), default=0)
    except (KeyError, TypeError, ValueError):
        raise InvalidFile(f"{file} has a damaged header; download it again") from None
    if data_bytes < needed:
        whole = size - data_bytes + needed
        raise InvalidFile(f"{file} is cut short: {_amounts(size, whole)}; download it again")
    if data_bytes > needed:
        raise InvalidFile(f"{file} is damaged: {data_bytes - needed:,} bytes too many; download it again")
    return list(tensors)


def _end(entry: Mapping[str, Any]) -> int:
    """Return where the tensor ends. Raises `KeyError`, `TypeError` or `ValueError`."""
    begin, end = entry["data_offsets"]
    if not 0 <= int(begin) <= int(end):
        raise ValueError("offsets out of order")
    return int(end)


def _amounts(size: int, whole: int) -> str:
    if whole < 10 * _MB:
        return f"{size:,} of {whole:,} bytes"
    return f"{size // _MB:,} of {whole // _MB:,} MB"


def explain_start(start: bytes) -> str:
    """Return what a file with this beginning is, if it is no model file at all; else an empty text."""
    if not start:
        return "is empty; download it again"
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder"
    head = start.lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a model file: the download failed; download it again"
    # A header's length may begin with the same bytes; a brace follows it.
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")) and start[8:9] != b"{":
        return "is a PyTorch file, not safetensors, whatever its name; convert it"
    if not start.strip(b"\0"):
        return "begins with zeros only: the download was interrupted; download it again"
    return ""
