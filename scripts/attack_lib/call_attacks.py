"""Attacks with calls of a model, by a client with a key."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import httpx

from scripts.attack_lib.attack import CUSTOMER, MIB, Attack, BoundBroken, Bounds
from scripts.attack_lib.body_attacks import JOBS, post
from scripts.attack_lib.target import Target

PREDICT, INFER = "/v1/models/echo:predict", "/v2/models/echo/infer"
_JSON = {"content-type": "application/json"}
_FORM = {"content-type": "multipart/form-data; boundary=B"}
#: The body, its slices or copies, and the result of the echo.
_LARGE = Bounds(160 * MIB, 0.5)


def _instances(value: bytes) -> Callable[[], bytes]:
    return lambda: b'{"instances":[' + value + b"]}"


def _many() -> bytes:
    return _instances(b"1," * 15_000_000 + b"1")()


def _members() -> bytes:
    return b'{"a":[' + b'{"a":1},' * 2_500_000 + b"1]}"


def _padded() -> bytes:
    return _instances(b"1,2")() + b" " * (30 * MIB)


def _job_of_many() -> bytes:
    return b'{"path":"%b","body":%b}' % (PREDICT.encode(), _many())


def _tensors(count: int, strings: int) -> Callable[[], bytes]:
    def body() -> bytes:
        tensor = b'{"name":"x%d","shape":[%d],"datatype":"BYTES","parameters":{"binary_data_size":%d}}'
        inputs = b",".join(tensor % (number, strings, 4 * strings) for number in range(count))
        return b'{"inputs":[' + inputs + b"]}" + bytes(4 * strings * count)

    return body


def _infer(content: Callable[[], bytes], *allowed: int) -> Callable[[Target], str]:
    """Return an attack with binary tensors after the JSON."""

    def run(target: Target) -> str:
        body = content()
        size = body.rindex(b"]}") + 2
        return post(INFER, lambda: body, {"inference-header-content-length": str(size)}, *allowed)(target)

    return run


def _false_boundaries() -> bytes:
    head = b'--B\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
    return head + b"\r\n--A\r" * (4 * MIB) + b"\r\n--B--\r\n"


def held_calls(target: Target) -> str:
    """Several clients send a large instance beside a small one."""
    body = b'{"instances":["small",' + b'"' + b"a" * (24 * MIB) + b'"]}'
    statuses: list[int] = []

    def call() -> None:
        with contextlib.suppress(httpx.HTTPError), target.client(target.alice) as alice:
            statuses.append(alice.post(PREDICT, content=body, headers=_JSON).status_code)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not target.is_served():
        raise BoundBroken("bob is not served")
    return f"answered {statuses}"


def _one_tensor(shape: bytes, data: bytes) -> Callable[[], bytes]:
    tensor = b'{"name":"x","shape":[%b],"datatype":"FP64","data":[%b]}' % (shape, data)
    return lambda: b'{"inputs":[' + tensor + b"]}"


_NESTED = _instances(b"[" * MIB + b"]" * MIB)
_LONG_ACCEPT = _JSON | {"accept": "image/png," * 6_000}
ATTACKS = [
    Attack("15 million instances", "400", post(PREDICT, _many, _JSON, 400), CUSTOMER),
    Attack("instance of a million brackets", "400", post(PREDICT, _NESTED, _JSON, 400), CUSTOMER, is_short=False),
    Attack("call of 2.5 million members", "400", post(PREDICT, _members, _JSON, 400), CUSTOMER, is_short=False),
    Attack("padded instances", "200", post(PREDICT, _padded, _JSON, 200), _LARGE, is_short=False),
    Attack("job of 15 million instances", "400", post(JOBS, _job_of_many, _JSON, 400), CUSTOMER, is_short=False),
    Attack("form of 4 million false boundaries", "200", post(PREDICT, _false_boundaries, _FORM, 200), _LARGE),
    Attack("64 tensors of 60,000 strings", "400", _infer(_tensors(64, 60_000), 400), CUSTOMER),
    Attack("8,000 tensors", "400", _infer(_tensors(8_000, 1), 400), CUSTOMER, is_short=False),
    Attack(
        "JSON tensor of a million numbers",
        "413",
        post(INFER, _one_tensor(b"1", b"1," * MIB + b"1"), _JSON, 413),
        CUSTOMER,
        is_short=False,
    ),
    Attack(
        "tensor of 400,000 dimensions",
        "400",
        post(INFER, _one_tensor(b"1," * 400_000 + b"1", b"1"), _JSON, 400),
        CUSTOMER,
        is_short=False,
    ),
    Attack("Accept of 60 KB", "200", post(PREDICT, _instances(b"1"), _LONG_ACCEPT, 200), CUSTOMER, is_short=False),
    Attack("four large calls at once", "bob served", held_calls, Bounds(256 * MIB, 0.5), is_short=False),
]
