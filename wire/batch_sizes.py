"""How many tasks share a step, as a histogram that a worker reports."""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated

import msgspec

#: Upper bounds of the buckets; a last bucket takes larger batches.
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BUCKETS = len(BATCH_SIZES) + 1
_Sum = Annotated[int, msgspec.Meta(ge=0)]


class BatchSizes(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """The steps of a worker since its start by the size of their batches."""

    #: Number of steps in each bucket.
    steps: Annotated[tuple[_Sum, ...], msgspec.Meta(min_length=_BUCKETS, max_length=_BUCKETS)] = (0,) * _BUCKETS
    #: Sum of all sizes.
    rows: _Sum = 0

    def with_step(self, rows: int) -> BatchSizes:
        """Return these and one more step of so many rows, if it has any."""
        if not rows:
            return self
        steps, bucket = list(self.steps), bisect_left(BATCH_SIZES, rows)
        steps[bucket] += 1
        return BatchSizes(tuple(steps), self.rows + rows)
