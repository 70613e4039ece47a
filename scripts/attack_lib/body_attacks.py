"""Attacks with the body of a request, by a client with a key."""

from __future__ import annotations

import contextlib
import functools
import gzip
import threading
import time
from collections.abc import Callable

import httpx

from scripts.attack_lib import pictures
from scripts.attack_lib.attack import CUSTOMER, MIB, Attack, BoundBroken
from scripts.attack_lib.raw_client import HOST, connect, send_until_refused
from scripts.attack_lib.target import Target

EDIT, GENERATE, JOBS, PREDICT = "/v1/images/edits", "/v1/images/generations", "/v1/jobs", "/predict"
_MAX_ANSWER_BYTES = 4096
_JSON = {"content-type": "application/json"}
_HEAD = (
    b"POST %b HTTP/1.1\r\n%bAuthorization: Bearer %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


def post(path: str, content: Callable[[], bytes], headers: dict[str, str], *allowed: int) -> Callable[[Target], str]:
    """Return an attack that posts the content as alice and expects one of the statuses in a short answer."""

    def run(target: Target) -> str:
        body = content()
        with target.client(target.alice) as alice:
            try:
                answer = alice.post(path, content=body, headers=headers)
            except httpx.TransportError as error:
                return f"hung up ({type(error).__name__})"
        if answer.status_code not in allowed:
            raise BoundBroken(f"answered {answer.status_code}: {answer.text[:100]}")
        if answer.status_code >= 400 and len(answer.content) > _MAX_ANSWER_BYTES:
            raise BoundBroken(f"an error of {len(answer.content)} B")
        return f"{answer.status_code}, {len(body) >> 10} KiB"

    return run


def form(charset: str, text: bytes) -> tuple[Callable[[], bytes], dict[str, str]]:
    content = b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + text + b"\r\n--B--\r\n"
    return lambda: content, {"content-type": f"multipart/form-data; boundary=B; charset={charset}"}


@functools.lru_cache(1)
def members(count: int) -> bytes:
    return b",".join(b'"%d":0' % number for number in range(count))


def edit(picture: Callable[[], bytes], *allowed: int) -> Callable[[Target], str]:
    """Return an attack that edits the picture."""

    def run(target: Target) -> str:
        file = picture()
        with target.client(target.alice) as alice:
            answer = alice.post(EDIT, files={"image": file}, data={"prompt": "a", "size": "64x64"})
        if answer.status_code not in allowed:
            raise BoundBroken(f"answered {answer.status_code}: {answer.text[:100]}")
        return f"{answer.status_code}, {len(file) >> 10} KiB"

    return run


def abandoned_bombs(target: Target) -> str:
    """Two clients upload expensive pictures and leave; bob's edit must not wait for them."""
    bomb = pictures.jpeg_scans(5000, 90)

    def upload() -> None:
        with contextlib.suppress(httpx.HTTPError), target.client(target.alice) as alice:
            alice.post(EDIT, files={"image": bomb}, data={"prompt": "a", "size": "64x64"}, timeout=0.5)

    threads = [threading.Thread(target=upload) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    with target.client(target.bob) as bob:
        answer = bob.post(EDIT, files={"image": pictures.honest_png()}, data={"prompt": "a"})
    waited_s = time.monotonic() - started
    for thread in threads:
        thread.join()
    if answer.status_code != 200 or waited_s > 5.0 * target.stall_factor:
        raise BoundBroken(f"bob's edit: {answer.status_code} after {waited_s:.1f} s")
    return f"bob's edit after {waited_s:.1f} s"


def held_bodies(target: Target) -> str:
    """Send almost all of many large bodies, and wait."""
    size = 31 * MIB
    sent = 0
    with contextlib.ExitStack() as opened:
        for _ in range(12):
            connection = opened.enter_context(connect(target.port))
            connection.settimeout(1.0)
            connection.sendall(_HEAD % (GENERATE.encode(), HOST, target.alice.encode(), size))
            sent += send_until_refused(connection, b" " * 65536, size - 65536)
        time.sleep(0.5)
    return f"{sent >> 20} of {12 * size >> 20} MiB taken"


def job(body: Callable[[], bytes]) -> Callable[[], bytes]:
    return lambda: b'{"path":"/predict",' + body() + b"}"


_UTF_16 = {"content-type": "application/json; charset=utf-16"}
_BIG = 2_500_000
ATTACKS = [
    Attack("form in punycode", "400", post(EDIT, *form("punycode", b"e28h" + b"A" * 250_000), 400, 415), CUSTOMER),
    Attack("form in idna", "400", post(EDIT, *form("idna", b"xn--" + b"a" * 1_000_000), 400, 413, 415), CUSTOMER),
    Attack("form in utf-7", "400", post(EDIT, *form("utf-7", b"+2AA-" * 50_000), 400, 415), CUSTOMER),
    Attack(
        "JSON in utf-16",
        "400",
        post(
            PREDICT,
            lambda: '{"prompt":"a"}'.encode("utf-16"),
            {"content-type": "application/json; charset=utf-16"},
            400,
            415,
        ),
        CUSTOMER,
    ),
    Attack(
        "job of 2.5 million members",
        "400",
        post(JOBS, job(lambda: members(_BIG)), _JSON, 400, 413),
        CUSTOMER,
        is_short=False,
    ),
    Attack(
        "job with a body of 2.5 million members",
        "413",
        post(JOBS, job(lambda: b'"body":{' + members(_BIG) + b"}"), _JSON, 400, 413),
        CUSTOMER,
        is_short=False,
    ),
    Attack(
        "60,000 unknown members", "400", post(GENERATE, lambda: b"{" + members(60_000) + b"}", _JSON, 400), CUSTOMER
    ),
    Attack(
        "60,000 adapters",
        "400",
        post(GENERATE, lambda: b'{"prompt":"a","loras":[' + b'{"name":"a"},' * 60_000 + b'{"name":"a"}]}', _JSON, 400),
        CUSTOMER,
    ),
    Attack(
        "a name of 900 KB", "400, short", post(GENERATE, lambda: b'{"%b":1}' % (b"x" * 900_000), _JSON, 400), CUSTOMER
    ),
    Attack("a million brackets", "400", post(GENERATE, lambda: b"[" * 1_000_000, _JSON, 400), CUSTOMER),
    Attack(
        "nested member",
        "400",
        post(GENERATE, lambda: b'{"loras":' + b"[" * 200_000 + b"]" * 200_000 + b"}", _JSON, 400),
        CUSTOMER,
    ),
    Attack(
        "number of a million digits",
        "400",
        post(PREDICT, lambda: b'{"seed":' + b"1" * 1_000_000 + b"}", _JSON, 400),
        CUSTOMER,
    ),
    Attack(
        "gzip of 256 MiB",
        "413",
        post(GENERATE, lambda: gzip.compress(b" " * (256 * MIB)), {"content-encoding": "gzip"}, 413),
        CUSTOMER,
    ),
    Attack("twelve bodies of 31 MiB, unfinished", "bounded", held_bodies, CUSTOMER),
    Attack("JPEG of 800 scans", "400", edit(lambda: pictures.jpeg_scans(5000, 800), 400), CUSTOMER),
    Attack("eight costly pictures, clients gone", "bob served", abandoned_bombs, CUSTOMER),
    Attack("25,000,000 x 1 pixels", "400", edit(lambda: pictures.png(25_000_000, 1, depth=1, color=0), 400), CUSTOMER),
    Attack(
        "1 x 25,000 pixels", "400 or 200", edit(lambda: pictures.png(1, 25_000, depth=1, color=0), 200, 400), CUSTOMER
    ),
    Attack(
        "PNG of a million chunks", "400", edit(lambda: pictures.many_chunks(1_000_000), 400), CUSTOMER, is_short=False
    ),
    Attack(
        "PNG with a text of 200 MB",
        "400 or 200",
        edit(lambda: pictures.text_bomb(200_000_000), 200, 400),
        CUSTOMER,
        is_short=False,
    ),
    Attack("5000 broken EXIF tags", "no log lines", edit(lambda: pictures.broken_tags(5000), 200, 400), CUSTOMER),
]
