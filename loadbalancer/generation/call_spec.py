"""One complete request for calls."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from wire.codec import Frame
from wire.inputs import CallInputs


class CallSpec(msgspec.Struct, frozen=True):
    """One complete request: a task per item of `inputs`, each with its own frames."""

    model: str
    inputs: Sequence[CallInputs]
    frames: Sequence[Sequence[Frame]]
    timeout_s: float
    priority: int = 0
    #: Owner of the API key, and its share of the workers' time.
    owner: str = "anonymous"
    weight: float = 1.0
    #: The inputs are items of the request's list of this name, for errors; empty for one input.
    param: str = ""
