from __future__ import annotations

import pytest

from wire.inputs import Sampling, TextInputs
from wire.messages import EngineInfo
from wire.text import SamplingDefaults, TextInfo
from worker.text_defaults import with_checkpoint_defaults

_DEFAULTS = SamplingDefaults(temperature=0.6, top_k=20)


@pytest.mark.parametrize(
    ("given", "defaults", "expected"),
    [
        (Sampling(1, unset=("temperature", "top_k")), _DEFAULTS, Sampling(1, temperature=0.6, top_k=20)),
        (Sampling(1, 0.9, unset=("top_k", "min_p")), _DEFAULTS, Sampling(1, 0.9, top_k=20)),
        (Sampling(1, 0.9), _DEFAULTS, Sampling(1, 0.9)),
        (Sampling(1, unset=("temperature", "later")), SamplingDefaults(), Sampling(1)),
        (Sampling(1, unset=("temperature",)), None, Sampling(1)),
    ],
)
def test_only_unset_parameters_are_the_checkpoints(
    given: Sampling, defaults: SamplingDefaults | None, expected: Sampling
) -> None:
    info = EngineInfo(text=None if defaults is None else TextInfo(defaults=defaults))
    assert with_checkpoint_defaults(TextInputs(given, 9), info) == TextInputs(expected, 9)
