"""Attacks of a customer on what the server stores: jobs, answers of idempotency keys, images behind URLs."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import httpx

from scripts.attack_lib.attack import CUSTOMER, MIB, Attack, BoundBroken
from scripts.attack_lib.target import RESULTS, Target
from scripts.harness.processes import wait_until

_IMAGES: dict[str, Any] = {"prompt": "a", "num_inference_steps": 1, "n": 10, "size": "256x256"}
_JOB: dict[str, Any] = {"path": "/predict", "body": {"prompt": "a"}}
_BODY_BYTES, _TEXT_BYTES = 31 * MIB, 15 * MIB


def _metadata(target: Target) -> str:
    """Metadata beyond its limits in number, length of names, and length of texts."""
    odd: list[Any] = [
        {"a": "x" * 900_000},
        {"x" * 900_000: "a"},
        {str(number): "a" for number in range(50_000)},
        {str(number): "x" * 50_000 for number in range(16)},
        ["a"] * 200_000,
    ]
    seen: Counter[int] = Counter()
    with target.client(target.alice) as alice:
        for metadata in odd:
            answer = alice.post("/v1/jobs", json=_JOB | {"metadata": metadata})
            seen[answer.status_code] += 1
            if len(answer.content) > 4096:
                raise BoundBroken(f"an answer of {len(answer.content)} B")
    if set(seen) - {400, 413}:
        raise BoundBroken(f"answered {dict(seen)}")
    return str(dict(seen))


def _post_twice(target: Target, *, content: bytes, path: str, kind: str, key: str) -> list[int]:
    headers = {"content-type": kind, "idempotency-key": f"{key}-{time.monotonic_ns()}"}
    with target.client(target.alice) as alice:
        return [alice.post(path, content=content, headers=headers).status_code for _ in range(2)]


def _idempotent_form(target: Target) -> str:
    """The digest of a large form."""
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    content = head + b"\0" * _BODY_BYTES + b"\r\n--B--\r\n"
    found = _post_twice(
        target, content=content, path="/v1/images/edits", kind="multipart/form-data; boundary=B", key="form"
    )
    if set(found) - {400, 413}:
        raise BoundBroken(f"answered {found}")
    return f"{found}"


def _idempotent_job(target: Target) -> str:
    """The digest of a large job. Parsing its text takes up to four times its size."""
    body = {"prompt": "a", "image": "data:image/png;base64," + "A" * _TEXT_BYTES}
    content = json.dumps({"path": "/v1/images/generations", "body": body}).encode()
    found = _post_twice(target, content=content, path="/v1/jobs", kind="application/json", key="job")
    if set(found) - {400, 413}:
        raise BoundBroken(f"answered {found}")
    return f"{found}"


def _urls(answer: httpx.Response) -> list[str]:
    if answer.status_code != 200:
        raise BoundBroken(f"images as URLs: {answer.status_code} {answer.text[:100]}")
    return [image["url"] for image in answer.json()["data"]]


def _fill_results(target: Target) -> str:
    """Alice's images behind URLs take no more than her part, and bob's stay."""
    wanted, filled = _IMAGES | {"response_format": "url"}, 0
    with target.client(target.alice) as alice, target.client(target.bob) as bob:
        (kept,) = _urls(bob.post("/v1/images/generations", json=wanted | {"n": 1}))
        first = ""
        while filled < 1.5 * RESULTS["max_bytes"]:
            urls = _urls(alice.post("/v1/images/generations", json=wanted))
            first = first or urls[0]
            filled += len(urls) * len(httpx.get(urls[0], timeout=30).content)
        gone = lambda: httpx.get(first, timeout=30).status_code == 404  # noqa: E731
        wait_until(gone, f"the deletion of alice's oldest of {filled} bytes", 20.0 * target.stall_factor)
        if httpx.get(kept, timeout=30).status_code != 200:
            raise BoundBroken("bob's image is gone")
    return f"{filled / MIB:.1f} MiB, the oldest deleted, bob's is there"


ATTACKS = [
    Attack("jobs with huge metadata", "400", _metadata, CUSTOMER),
    Attack("form of 31 MiB with an idempotency key", "400", _idempotent_form, CUSTOMER),
    Attack("job of 15 MiB with an idempotency key", "400", _idempotent_job, CUSTOMER),
    Attack("images behind URLs of one owner", "bob's stays", _fill_results, CUSTOMER, is_short=False),
]
