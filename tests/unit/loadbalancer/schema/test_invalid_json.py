"""What is wrong with a body that is no JSON, in the same words whichever parser finds it."""

from __future__ import annotations

import pytest

from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.parsing import parse
from loadbalancer.schema.raw_json import invalid_reason
from loadbalancer.schema.requests import PredictRequest
from loadbalancer.schema.struct_parsing import invalid_json
from loadbalancer.schema.text.text_requests import parse_text

SURROGATE = "a text in it has half a character, a surrogate without its pair"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"prompt": "\\ud800"}', SURROGATE),
        (b'{"prompt": "\\ud800\\u0041"}', SURROGATE),
        (b'{"prompt": "\\udc00"}', SURROGATE),
        (b'{"\\ud800": 1}', SURROGATE),
        (b'{"prompt": "\xff"}', "it is not UTF-8"),
        (b'{"user": ' + b"[" * 100_000, "it is nested too deeply"),
        (b"\xff\xfe{\0}\0", "it is UTF-16 or UTF-32; JSON must be UTF-8"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_reason_is_the_same_everywhere(body: bytes, reason: str) -> None:
    expected = f"The request body is not valid JSON: {reason}."
    with pytest.raises(InvalidRequest) as of_images:
        parse(PredictRequest, body)
    with pytest.raises(InvalidRequest) as of_texts:
        parse_text("/v1/completions", body)
    of_calls = invalid_json(invalid_reason(body), body)
    assert [of_images.value.message, of_texts.value.message, of_calls.message] == [expected] * 3
    assert of_calls.code == "invalid_json"


@pytest.mark.parametrize("body", [b"{}", b'"\\ud83d\\ude00"', b"1e999", b" [1] ", '"ä"'.encode()])
def test_json_has_no_reason(body: bytes) -> None:
    assert invalid_reason(body) == ""
