"""The address of local workers: a Unix socket, which they find by its file."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import zmq

from configs.data_dir import is_same_file
from loadbalancer.transport.curve_listener import CannotListen

log = logging.getLogger(__name__)


class LocalAddress:
    """Binds a socket to the address, and again if its file is removed."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._path = Path(address.removeprefix("ipc://"))
        #: Status of the file.
        self._bound: os.stat_result | None = None

    def bind(self, socket: zmq.Socket[bytes]) -> None:
        """Raises `CannotListen` if the address cannot be bound."""
        try:
            socket.bind(self._address)
        except zmq.ZMQError as error:
            raise CannotListen(f"workers cannot connect: {self._address}: {error.strerror}") from None
        self._bound = self._file_status()

    def ensure_bound(self, socket: zmq.Socket[bytes]) -> None:
        """Bind again if the file was removed.

        Connections that exist are not affected. Without the folder of the file nothing changes.
        """
        if self._bound is None or is_same_file(self._path, self._bound) or not self._path.parent.is_dir():
            return
        with contextlib.suppress(zmq.ZMQError):  # tried again at the next call
            socket.bind(self._address)
            self._bound = self._file_status()
            log.warning("the socket of the workers, %s, was removed; it is there again", self._path)

    def _file_status(self) -> os.stat_result | None:
        """Return the status of the file; None for an address that has none."""
        return self._path.lstat() if self._address.startswith("ipc://") else None
