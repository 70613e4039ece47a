"""Finds out whether requests for a newly loaded pipeline can share a forward pass, by the outputs of two of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from configs.model_settings import Model
from wire.inputs import GenerationMode
from wire.messages import PassSharing
from worker.engine import EngineRequest
from worker.engines.diffusion.generic.call_batching import group_calls, run_calls
from worker.engines.diffusion.generic.probe import outputs_match, probe_request
from worker.engines.diffusion.generic.row import GenericRow

log = logging.getLogger(__name__)


def probe_sharing(
    start_row: Callable[[EngineRequest], GenericRow],
    model: Model,
    mode: GenerationMode,
    pipeline: str,
    *,
    takes_text: bool,
) -> PassSharing:
    """Return which requests can share a forward pass. `pipeline` names it in the log. Raises errors of `start_row`."""
    lengths: tuple[PassSharing, ...] = ("always", "equal_prompt_lengths")
    for sharing in lengths:
        words = 3 if sharing == "always" and takes_text else 1
        requests = probe_request(model, mode, 0), probe_request(model, mode, 1, words)
        rows: list[GenericRow] = []
        try:
            rows += map(start_row, requests)
            difference = _difference_when_shared(rows)
        finally:
            for row in rows:
                row.thread.cancel()
        if difference is None:
            break
        log.info("a %s: requests share passes %s: no, %s", pipeline, sharing, difference)
    else:
        log.warning("a %s cannot batch requests, each gets its own forward pass: %s", pipeline, difference)
        return "never"
    if sharing != "always":
        log.warning("a %s: only requests with prompts of equal length share a forward pass", pipeline)
    return sharing


@torch.inference_mode()
def _difference_when_shared(rows: Sequence[GenericRow]) -> str | None:
    """Return why the rows cannot share a forward pass; None if their outputs are equal batched and separately."""
    calls = [row.thread.pending_call for row in rows if row.thread.pending_call is not None]
    if len(group_calls(calls, pad=True)) != 1:
        return "their calls have different shapes"
    separate = [run_calls([call]) for call in calls]
    try:
        together = [[answer] for answer in run_calls(calls)]
    except Exception as error:
        return str(error)
    if not outputs_match(separate, together):
        return "the outputs differ"
    at_controlnet = [row for row in rows if row.is_at_controlnet]
    if not at_controlnet:
        return None
    for row, answers in zip(rows, separate, strict=True):
        row.resume(answers[0])
    return _difference_when_shared(rows)
