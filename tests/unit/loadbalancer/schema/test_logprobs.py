from __future__ import annotations

import pytest

from loadbalancer.schema.text.logprobs import completion_logprobs
from wire.text import TokenLogprob

TOP = [(b"a", -0.5), (b"b", -1.0)]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [((b"a", -0.5), {"a": -0.5, "b": -1.0}), ((b"z", -7.0), {"a": -0.5, "b": -1.0, "z": -7.0})],
)
def test_alternatives_of_completions_have_the_chosen_token(
    chosen: tuple[bytes, float], expected: dict[str, float]
) -> None:
    found = completion_logprobs([TokenLogprob(*chosen, TOP)], 0, 2)
    assert found.top_logprobs == [expected]
    assert completion_logprobs([TokenLogprob(*chosen)], 0, 0).top_logprobs is None
