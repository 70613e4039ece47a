"""Attacks with a key on the memory of the balancer: what becomes larger than it was sent."""

from __future__ import annotations

from scripts.attack_lib import pictures
from scripts.attack_lib.attack import CUSTOMER, Attack, BoundBroken
from scripts.attack_lib.body_attacks import EDIT, GENERATE, edit, post
from scripts.attack_lib.target import Target

#: Characters of four bytes, also in memory.
_WIDE = "\U0001f600"
_JOBS = 15


def _texts(count: int) -> bytes:
    """A form of texts of 1 MiB, of which one character makes all others wide."""
    text = b"a" * 1_000_000 + _WIDE.encode()
    part = b'--B\r\nContent-Disposition: form-data; name="%d"\r\n\r\n%b\r\n'
    return b"".join(part % (number, text) for number in range(count)) + b"--B--\r\n"


def _long_prompts(target: Target) -> str:
    """Jobs of ten images each hold their prompts once, not ten times."""
    text = _WIDE * 4000
    body = {"prompt": text, "negative_prompt": text, "n": 10, "num_inference_steps": 1000}
    with target.client(target.alice) as alice:
        jobs = [alice.post("/v1/jobs", json={"path": GENERATE, "body": body}) for _ in range(_JOBS)]
        page = alice.get("/v1/jobs", params={"limit": 100}).json()["data"]
        for job in jobs:
            alice.delete(f"/v1/jobs/{job.json()['id']}")
            alice.delete(f"/v1/jobs/{job.json()['id']}")
    if len(page) < _JOBS // 3:
        raise BoundBroken(f"a page has {len(page)} of {_JOBS} jobs: their specs are large")
    return f"{len(page)} of {_JOBS} jobs on a page"


_FORM = {"content-type": "multipart/form-data; boundary=B"}
ATTACKS = [
    Attack("form of 31 texts of 1 MB", "413", post(EDIT, lambda: _texts(31), _FORM, 413), CUSTOMER),
    Attack(
        "JPEG of 800 scans behind an end in a table",
        "400",
        edit(lambda: pictures.hidden_end(pictures.jpeg_scans(5000, 800)), 400),
        CUSTOMER,
    ),
    Attack("jobs of ten long prompts", "one prompt each", _long_prompts, CUSTOMER),
]
