"""Of JSON members with the same name the last one counts, wherever a body is decoded."""

from __future__ import annotations

import httpx
import pytest

from tests.support.texts import CHAT, COMPLETE, RESPOND

GENERATE = "/v1/images/generations"
WORDS = '"model": "words"'
LENGTH = '"max_output_tokens": 1'
USED = ["usage", "completion_tokens"]
MESSAGES = '"max_tokens": 2, "messages": [{"role": "user", "content": "a"}]'
TENSOR = '"name": "x", "datatype": "INT32", "shape": [2], "shape": [1], "data": [1, 2], "data": [3]'


@pytest.mark.parametrize(
    ("path", "members", "place", "expected"),
    [
        (GENERATE, ['"prompt": "a"', '"size": "32x32"', '"size": "64x64"'], ["size"], "64x64"),
        (GENERATE, ['"prompt": "a"', '"model": "slow"', '"model": "quick"'], ["model"], "quick"),
        (COMPLETE, [WORDS, '"prompt": "a"', '"max_tokens": 3', '"max_tokens": 2'], USED, 2),
        (CHAT, [WORDS, '"max_tokens": 3', '"max_tokens": 2', MESSAGES], USED, 2),
        (RESPOND, [WORDS, '"input": "a"', LENGTH, '"metadata": {"k": "1", "k": "2"}'], ["metadata", "k"], "2"),
        ("/v1/models/echo:predict", ['"instances": [1]', '"instances": [2]'], ["predictions"], [2]),
        ("/v1/models/echo:predict", ['"instances": [{"a": 1, "a": 2}]'], ["predictions", 0, "a"], 2),
        ("/v2/models/echo/infer", ['"inputs": []', f'"inputs": [{{{TENSOR}}}]'], ["outputs", 0, "data"], [3]),
        ("/echo", ['"a": 1', '"a": 2'], ["a"], 2),
        ("/v1/jobs", ['"path": "/predict"', f'"path": "{GENERATE}"', '"body": {"prompt": "a"}'], ["path"], GENERATE),
        ("/v1/jobs", [f'"path": "{GENERATE}"', '"body": {}', '"body": {"prompt": "a", "n": 1, "n": 2}'], ["n"], 2),
        ("/v1/jobs", [f'"path": "{CHAT}"', f'"body": {{"model": "quick", {WORDS}, {MESSAGES}}}'], ["model"], "words"),
    ],
)
def test_last_member_counts(
    http: httpx.Client, path: str, members: list[str], place: list[str | int], expected: object
) -> None:
    content = f"{{{', '.join(members)}}}"
    answered = http.post(path, content=content, headers={"content-type": "application/json"})
    assert answered.status_code in (200, 202), answered.text
    found = answered.json()
    for part in place:
        found = found[part]
    assert found == expected


def test_members_before_the_last_must_be_valid_json(http: httpx.Client) -> None:
    answered = http.post("/echo", content='{"a": 01, "a": 2}', headers={"content-type": "application/json"})
    assert answered.json()["error"]["code"] == "invalid_json"
