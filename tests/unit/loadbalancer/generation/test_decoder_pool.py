"""Decoder processes: real ones, which are killed with what they work for."""

from __future__ import annotations

import asyncio
import signal
import struct
from collections.abc import AsyncIterator, Callable

import psutil
import pytest

from configs.sections import Server
from loadbalancer.generation.decoding.decoder_pool import DecoderPool
from loadbalancer.generation.decoding.messages import (
    DecodeRequest,
    ImageLimits,
    RejectedImage,
    SourceImages,
    decode_result,
    encode,
)
from loadbalancer.generation.decoding.pixels import decode_images
from loadbalancer.schema.errors import ApiError, InvalidRequest, TimedOut, TooBusy, Unavailable
from scripts.harness.processes import PATIENCE_S
from tests.support.images import file, half, make_image, png, scan_bomb
from tests.support.waiting import until

LIMITS = ImageLimits(
    max_source_pixels=100_000_000,
    max_source_side=16_384,
    max_metadata_bytes=1 << 20,
    max_pixels=1 << 20,
    min_side=8,
)
#: Far more than a second of CPU time on any machine (about four each), for the image and for the mask.
BOMB = scan_bomb(10_000, 100)


def request(image: bytes, mask: bytes | None = None, cpu_limit_s: float = 60.0) -> Callable[[], DecodeRequest]:
    return lambda: DecodeRequest(image, mask, LIMITS, (64, 64), use_alpha_as_mask=True, cpu_limit_s=cpu_limit_s)


@pytest.fixture
async def pool() -> AsyncIterator[DecoderPool]:
    pool = DecoderPool(Server(decoders=1, decode_timeout_s=60.0, max_waiting_decodes=4))
    yield pool
    await pool.close()
    await until(lambda: len(pool) == 0 and not decoders())


def decoders() -> list[psutil.Process]:
    """Return the decoders of this process, which may also have servers of other tests as children."""
    return [child for child in psutil.Process().children() if is_decoder(child)]


def is_decoder(child: psutil.Process) -> bool:
    try:
        command = " ".join(child.cmdline())
        return child.status() != psutil.STATUS_ZOMBIE and ("decoder_process" in command or "muster decoder" in command)
    except psutil.Error:  # it has just ended
        return False


async def decode(pool: DecoderPool, read: Callable[[], DecodeRequest], owner: str = "alice") -> SourceImages:
    return await pool.decode(read, owner, timeout_s=PATIENCE_S)


async def start_bomb(pool: DecoderPool, owner: str = "mallory") -> asyncio.Task[SourceImages]:
    """Return the decode of a bomb once a process works on it."""
    task = asyncio.create_task(decode(pool, request(BOMB, BOMB), owner))
    await until(lambda: any(child.cpu_times().user > 0.3 for child in decoders()))
    return task


@pytest.mark.parametrize("mask", [None, file(half("L"))], ids=["image", "inpaint"])
async def test_process_decodes_like_the_function(pool: DecoderPool, mask: bytes | None) -> None:
    assert not decoders(), "a process before it is needed"
    expected = decode_images(png(), mask, LIMITS, size=(64, 64), use_alpha_as_mask=True)
    for _ in range(3):
        assert await decode(pool, request(png(), mask)) == expected
    assert pool.counters == {"decoders_started": 1}


async def test_rejected_file_leaves_the_process_as_it_is(pool: DecoderPool) -> None:
    for content, reason in ((b"no picture", "not a PNG"), (png()[:200], "broken")):
        with pytest.raises(InvalidRequest, match=reason) as rejected:
            await decode(pool, request(content))
        assert (rejected.value.param, rejected.value.code) == ("image", "invalid_image")
    await decode(pool, request(png()))
    assert pool.counters == {"decoders_started": 1}


async def test_warnings_about_a_file_are_not_logged(pool: DecoderPool, capfd: pytest.CaptureFixture[str]) -> None:
    tags = b"".join(struct.pack(">HHII", tag, 2, 0xFFFFFFF0, 0) for tag in range(5000))
    content = file(make_image(), exif=b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 5000) + tags)
    assert (await decode(pool, request(content))).mode == "image"
    assert capfd.readouterr() == ("", "")


async def test_bombs_are_killed_while_others_are_served(pool: DecoderPool) -> None:
    ended: list[str] = []

    async def run(owner: str, read: Callable[[], DecodeRequest]) -> object:
        try:
            return await decode(pool, read, owner)
        except ApiError as error:
            return error
        finally:
            ended.append(owner)

    bombs = [asyncio.create_task(run("mallory", request(BOMB, BOMB, cpu_limit_s=0.1))) for _ in range(2)]
    await until(decoders)
    assert isinstance(await run("alice", request(png())), SourceImages)
    for error in await asyncio.gather(*bombs):
        assert isinstance(error, InvalidRequest)
        assert error.message == "Invalid image in 'image': it takes longer than 0.1 s to decode."
    assert ended == ["mallory", "alice", "mallory"]
    assert pool.counters["decodes_too_long"] == 2


async def test_decode_ends_with_its_client(pool: DecoderPool) -> None:
    running = await start_bomb(pool)
    (process,) = decoders()
    waiting = asyncio.create_task(decode(pool, request(BOMB), "mallory"))
    await until(lambda: len(pool) == 2)
    for task in (waiting, running):
        task.cancel()
    await asyncio.wait({waiting, running})
    assert len(pool) == 0
    await until(lambda: not process.is_running())
    await decode(pool, request(png()))
    assert pool.counters["decoders_started"] == 2


async def test_decode_ends_with_the_time_of_its_request(pool: DecoderPool) -> None:
    bomb = await start_bomb(pool)
    for owner in ("alice", "mallory"):
        with pytest.raises(TimedOut, match="not decoded in time"):
            await pool.decode(request(png()), owner, timeout_s=0.05)
    assert len(pool) == 1
    bomb.cancel()


async def test_closed_pool_rejects_everything(pool: DecoderPool) -> None:
    running = await start_bomb(pool)
    waiting = asyncio.create_task(decode(pool, request(png())))
    await until(lambda: len(pool) == 2)
    await pool.close()
    assert not decoders()
    for work in (running, waiting, asyncio.create_task(decode(pool, request(png())))):
        with pytest.raises(Unavailable, match="shutting down"):
            await work


async def test_killed_process_is_an_error_of_the_server(pool: DecoderPool) -> None:
    bomb = await start_bomb(pool)
    (process,) = decoders()
    process.send_signal(signal.SIGKILL)
    with pytest.raises(Unavailable) as failed:
        await bomb
    assert failed.value.code == "decoder_killed"
    await decode(pool, request(png()))


async def test_crash_in_a_decoder_is_the_fault_of_the_file(pool: DecoderPool) -> None:
    bomb = await start_bomb(pool)
    (process,) = decoders()
    process.send_signal(signal.SIGSEGV)
    with pytest.raises(InvalidRequest, match="the file is broken"):
        await bomb


async def test_waiting_images_are_bounded(pool: DecoderPool) -> None:
    bomb = await start_bomb(pool)
    waiting = [asyncio.create_task(decode(pool, request(BOMB), "mallory")) for _ in range(4)]
    await until(lambda: len(pool) == 5)
    with pytest.raises(TooBusy, match="4 requests wait for their source images") as full:
        await decode(pool, request(png()), "mallory")
    assert full.value.headers["retry-after"]
    honest = asyncio.create_task(decode(pool, request(png()), "alice"))
    await until(lambda: len(pool) == 6)
    bomb.cancel()
    assert (await honest).mode == "image"
    for task in waiting:
        task.cancel()


async def test_error_of_a_reader_reaches_its_request(pool: DecoderPool) -> None:
    def read() -> DecodeRequest:
        raise InvalidRequest("no data URL")

    with pytest.raises(InvalidRequest, match="no data URL"):
        await decode(pool, read)
    assert not decoders()
    await decode(pool, request(png()))


async def test_idle_process_ends() -> None:
    pool = DecoderPool(Server(), idle_s=0.05)
    await decode(pool, request(png()))
    await until(lambda: not decoders())
    await decode(pool, request(png()))
    assert pool.counters["decoders_started"] == 2
    await pool.close()


@pytest.mark.parametrize(
    "result",
    [
        SourceImages(8, 8, (bytes(191),)),
        SourceImages(8, 8, (bytes(192), bytes(63))),
        SourceImages(8, 8, ()),
        SourceImages(8, 8, (bytes(192),) * 3),
    ],
)
def test_result_of_the_wrong_size_is_refused(result: SourceImages) -> None:
    with pytest.raises(ValueError, match="wrong size"):
        decode_result(encode(result)[1])


def test_results_round_trip() -> None:
    for result in (SourceImages(8, 8, (bytes(192), bytes(64))), RejectedImage("mask", "no")):
        assert decode_result(encode(result)[1]) == result
    with pytest.raises(ValueError, match=r"."):
        decode_result(b"junk")
