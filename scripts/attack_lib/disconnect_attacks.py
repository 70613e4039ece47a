"""Attacks by customers who leave at the moment at which their answer comes."""

from __future__ import annotations

import random
import re
import time
from concurrent.futures import ThreadPoolExecutor

from scripts.attack_lib.attack import CUSTOMER, Attack, BoundBroken
from scripts.attack_lib.raw_client import HOST, connect, receive, statuses
from scripts.attack_lib.target import TIME_LIMIT_S, Target

_IMAGE = b'{"model": "m", "prompt": "a", "num_inference_steps": 1}'
_FORM = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\na\r\n--b--\r\n'
#: Path, media type and body.
_REQUESTS = (
    (b"/v1/images/generations", b"application/json", _IMAGE),
    (b"/v1/images/generations", b"application/json", _IMAGE[:-1] + b', "stream": true}'),
    (b"/v1/models/echo:predict", b"application/json", b'{"instances": [1, 2]}'),
    (b"/v1/models/echo:predict", b"multipart/form-data; boundary=b", _FORM),
)
_IN_FLIGHT = re.compile(r'^muster_in_flight\{kind="(\w+)"\} (\S+)', re.MULTILINE)
#: Kinds that other users of the server do not hold for long.
_KINDS = ("requests", "response_bytes", "recordings", "listeners", "tasks")
_CLIENTS, _ROUNDS, _LONGEST_S = 8, 600, 0.06
#: No answer comes within this time.
_UNDER_WAY_S = 0.005
#: Until a request is repeated: its work ends meanwhile.
_SOON_S = 0.0005


def _encoded(target: Target, number: int, key: str) -> bytes:
    path, kind, body = _REQUESTS[number % len(_REQUESTS)]
    head = b"POST %b HTTP/1.1\r\n%bAuthorization: Bearer %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n"
    own = f"Idempotency-Key: {key}\r\n" if key else ""
    return (
        head % (path, HOST, target.alice.encode(), kind, len(body)) + own.encode() + b"Connection: close\r\n\r\n" + body
    )


def _leave(target: Target, request: bytes, after_s: float) -> None:
    with connect(target.port) as connection:
        connection.sendall(request)
        time.sleep(after_s)


def _left_over(target: Target) -> dict[str, float]:
    """Return what is in flight after the time limit, by kind."""
    found: dict[str, float] = {}
    deadline = time.monotonic() + TIME_LIMIT_S
    with target.client(None) as client:
        while time.monotonic() < deadline:
            text = client.get("/metrics", headers=target.instance.admin).text
            found = {kind: float(number) for kind, number in _IN_FLIGHT.findall(text) if kind in _KINDS}
            found = {kind: number for kind, number in found.items() if number}
            if not found:
                break
            time.sleep(0.1)
    return found


def _leave_with_the_answer(target: Target) -> str:
    """Nothing is held for a client that has left, whatever was under way."""
    rng = random.Random(1)
    plan = [(number, f"leave-{number}" if rng.random() < 0.5 else "") for number in range(_ROUNDS)]
    with ThreadPoolExecutor(_CLIENTS) as pool:
        for number, key in plan:
            pool.submit(_leave, target, _encoded(target, number, key), rng.uniform(0.0, _LONGEST_S))
    if left := _left_over(target):
        raise BoundBroken(f"still in flight: {left}")
    return f"{_ROUNDS} clients, nothing held"


def _leave_and_repeat(target: Target) -> str:
    """A request that is repeated at once with its key is answered."""
    rng, found = random.Random(2), list[int]()
    for number in range(100):
        request = _encoded(target, number, f"repeat-{number}")
        with connect(target.port) as again:
            _leave(target, request, rng.uniform(0.0, _UNDER_WAY_S))
            time.sleep(rng.uniform(0.0, _SOON_S))
            again.sendall(request)
            found += statuses(receive(again))
    wrong = [status for status in found if status != 200]
    if wrong or len(found) != 100:
        raise BoundBroken(f"{len(found)} of 100 were answered, with {wrong[:3] or 200}")
    return "100 repetitions answered"


ATTACKS = [
    Attack("600 clients that leave as their answer comes", "nothing held", _leave_with_the_answer, CUSTOMER),
    Attack("clients that leave, and repeat the request at once", "200", _leave_and_repeat, CUSTOMER),
]
