"""Results of calls as JSON: large ones are written in a thread, as they would stall the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from loadbalancer.schema.call_results import CallResult, as_json, is_quick_json
from wire.codec import Frame

#: Results of more bytes are large.
INLINE_BYTES = 256 << 10


async def json_of(result: CallResult) -> Sequence[Frame]:
    """The result as JSON, in pieces. Raises `InvalidResult`."""
    if sum(map(len, result.frames)) <= INLINE_BYTES or is_quick_json(result):
        return as_json(result)
    return await asyncio.to_thread(as_json, result)
