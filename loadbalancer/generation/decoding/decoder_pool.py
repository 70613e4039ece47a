"""The decoder processes: started when needed, ended when idle, killed with the request that they work for.

Nothing is decoded for a client that has left: its waiting image leaves the queue, its running decoder is killed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Callable

import msgspec

from configs.sections import Server
from loadbalancer.generation.data_urls import invalid_image
from loadbalancer.generation.decoding.decode_queue import DecodeQueue, DecodeQueueFull
from loadbalancer.generation.decoding.decoder import Decoder, DecoderDied
from loadbalancer.generation.decoding.messages import (
    DecodeRequest,
    DecodeResult,
    RejectedImage,
    SourceImages,
    encode,
    max_result_bytes,
)
from loadbalancer.schema.errors import InternalError, TimedOut, TooBusy, Unavailable, shutting_down

log = logging.getLogger(__name__)

#: A decoder is replaced after this many requests, and ended after this time without one.
_MAX_USES = 500
_IDLE_S = 30.0
#: Time by the clock: for each second of CPU time that is allowed, and for the start of a decoder.
_CLOCK_FACTOR = 3.0
_START_S = 10.0
#: Limit of the wait for killed decoders at shutdown.
_END_S = 2.0
#: Signals of a decoder that a file has crashed.
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT})


class DecoderPool:
    """Decodes source images in processes. All methods are called in the event loop."""

    def __init__(self, config: Server, idle_s: float = _IDLE_S) -> None:
        self._timeout_s = config.decode_timeout_s
        self._idle_s = idle_s
        self._queue = DecodeQueue(config.decoders, config.max_waiting_decodes)
        self._turns: dict[int, asyncio.Future[None]] = {}
        self._idle: dict[Decoder, asyncio.TimerHandle] = {}
        self._busy: set[Decoder] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False
        #: Decoders that were started and killed, and images that were rejected because they take too long.
        self.counters: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<DecoderPool {self._queue!r}, {len(self._idle)} idle>"

    def __len__(self) -> int:
        """The number of images that wait or are decoded."""
        return len(self._turns)

    async def decode(self, read: Callable[[], DecodeRequest], owner: str, timeout_s: float) -> SourceImages:
        """Decode the owner's images when it is their turn. `read` is called in a thread then.

        Raises `InvalidRequest`, `TooBusy`, `TimedOut` after `timeout_s`, `Unavailable` and what `read` raises.
        """
        loop = asyncio.get_running_loop()
        ticket, started = self._add(owner), loop.time()
        turn = self._turns[ticket] = loop.create_future()
        self._start_next()
        try:
            async with asyncio.timeout(timeout_s):
                await turn
                started = loop.time()
                result = await self._run(read)
        except TimeoutError:
            raise TimedOut(
                "The request timed out: its source image was not decoded in time.", retry_after_s=1
            ) from None
        finally:
            del self._turns[ticket]
            self._queue.finish(ticket, loop.time() - started)
            self._start_next()
        if isinstance(result, RejectedImage):
            raise invalid_image(result.param, result.reason)
        return result

    async def close(self) -> None:
        """End all decoders. Waiting and running images get 503, also those whose decoder is just being started."""
        self._closed = True
        for turn in self._turns.values():
            if not turn.done():
                turn.set_exception(shutting_down())
        for timer in self._idle.values():
            timer.cancel()
        for decoder in [*self._idle, *self._busy]:
            self._end(decoder)
        if self._ending:
            await asyncio.wait(self._ending, timeout=_END_S)

    def _add(self, owner: str) -> int:
        if self._closed:
            raise shutting_down()
        try:
            return self._queue.add(owner)
        except DecodeQueueFull as full:
            text = f"{full.waiting} requests wait for their source images to be decoded. Please try again shortly."
            raise TooBusy(text, retry_after_s=2) from None

    def _start_next(self) -> None:
        while not self._closed and (ticket := self._queue.next()) is not None:
            turn = self._turns[ticket]
            if not turn.done():  # a cancelled one leaves the queue when its task runs
                turn.set_result(None)

    async def _run(self, read: Callable[[], DecodeRequest]) -> DecodeResult:
        request, encoded = await asyncio.to_thread(_read, read)
        decoder = await self._take()
        reusable = False
        try:
            if self._closed:  # meanwhile
                raise shutting_down()
            async with asyncio.timeout(_START_S + _CLOCK_FACTOR * self._timeout_s):
                result = await decoder.decode(encoded, max_result_bytes(request.limits, request.size))
            reusable = decoder.uses < _MAX_USES and not self._closed
            return result
        except TimeoutError:
            text = "The server is too busy to decode the source image. Please try again later."
            raise Unavailable(text, code="decode_timeout", retry_after_s=10) from None
        except DecoderDied as died:
            raise self._error(died, request.cpu_limit_s) from None
        finally:
            if reusable:
                self._busy.discard(decoder)
                self._idle[decoder] = asyncio.get_running_loop().call_later(self._idle_s, self._end, decoder)
            else:
                self._end(decoder)

    async def _take(self) -> Decoder:
        if self._idle:
            decoder, timer = self._idle.popitem()
            timer.cancel()
        else:
            decoder = await _started()
            self.counters["decoders_started"] += 1
        self._busy.add(decoder)
        return decoder

    def _end(self, decoder: Decoder) -> None:
        """Kill an idle or busy decoder. Idempotent."""
        if decoder in self._busy or decoder in self._idle:
            self._busy.discard(decoder)
            self._idle.pop(decoder, None)
            decoder.kill()
            self.counters["decoders_ended"] += 1
            task = asyncio.create_task(decoder.wait())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _error(self, died: DecoderDied, cpu_limit_s: float) -> Exception:
        if self._closed:
            return shutting_down()
        if died.signum is signal.SIGXCPU:
            self.counters["decodes_too_long"] += 1
            return invalid_image("image", f"it takes longer than {cpu_limit_s:g} s to decode")
        if died.signum in _CRASHES:
            log.warning("a source image crashed a decoder: %s", died)
            return invalid_image("image", "the file is broken")
        if died.signum is None:
            log.error("a decoder ended by itself: %s", died)
            return InternalError("The source image cannot be decoded because of an error of the server.")
        log.warning("a decoder was killed: %s", died)
        text = "The server could not decode the source image, perhaps for lack of memory. Please try again."
        return Unavailable(text, code="decoder_killed", retry_after_s=5)


async def _started() -> Decoder:
    """Start a decoder. Raises `Unavailable` where the system gives no process, memory or files for it."""
    try:
        return await Decoder.start()
    except OSError as error:
        log.warning("a decoder cannot be started: %s", error)
        text = "The server could not start to decode the source image. Please try again shortly."
        raise Unavailable(text, code="decoder_not_started", retry_after_s=5) from None


def _read(read: Callable[[], DecodeRequest]) -> tuple[DecodeRequest, tuple[bytes, bytes]]:
    """Return the request without its files, and the encoded one."""
    request = read()
    return msgspec.structs.replace(request, image=b"", mask=None), encode(request)
