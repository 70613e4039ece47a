"""A decoder process as the balancer sees it: start, decode, kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from loadbalancer.generation.decoding.messages import HEADER, DecodeResult, decode_result

_MODULE = "loadbalancer.generation.decoding.decoder_process"
_ROOT = Path(__file__).resolve().parents[3]
#: What the interpreter needs of the environment. API keys of upstream servers stay out of the process.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME", "VIRTUAL_ENV", "TZ")


class DecoderDied(Exception):
    """The process has ended. `signum` is the signal that ended it; None if it ended by itself."""

    def __init__(self, returncode: int) -> None:
        self.signum = signal.Signals(-returncode) if returncode < 0 else None
        super().__init__(self.signum.name if self.signum else f"status {returncode}")


class Decoder:
    """One process, which decodes one request at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._reading = asyncio.Lock()
        #: Requests so far.
        self.uses = 0

    def __repr__(self) -> str:
        return f"<Decoder {self._process.pid}, {self.uses} uses>"

    @classmethod
    async def start(cls) -> Decoder:
        """Start a process. Its stderr is the balancer's, because only bugs write there."""
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                _MODULE,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment,
            )
        )

    async def decode(self, request: Sequence[bytes], max_result_bytes: int) -> DecodeResult:
        """Send the encoded request and return its result. Raises `DecoderDied`, and `ValueError` for a bad result.

        After an exception, also a cancellation, the process must be killed.
        """
        self.uses += 1
        try:
            self._stdin.writelines(request)
            await self._stdin.drain()
            async with self._reading:
                (length,) = HEADER.unpack(await self._stdout.readexactly(HEADER.size))
                if length > max_result_bytes:
                    raise ValueError(f"a result of {length} bytes")
                body = await self._stdout.readexactly(length)
        except (ConnectionError, asyncio.IncompleteReadError):
            raise DecoderDied(await self._process.wait()) from None
        return decode_result(body)

    def kill(self) -> None:
        """End the process at once. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> None:
        """Return when the process has ended and its pipes are closed."""
        await self._process.wait()
        self._stdin.close()
        with contextlib.suppress(ConnectionError):
            async with self._reading:  # a running `decode` sees the end, too
                await self._stdout.read()
            await self._stdin.wait_closed()
