"""From logits to tokens, for all rows at once. Each row has its own parameters; its result depends on no other row.

The order is that of vLLM: bias, forbidden tokens, grammar, penalties; the most probable token for rows of temperature
0; for others temperature, `min_p`, `top_k`, `top_p` and noise. Log-probabilities are those of the model itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import torch

from wire.inputs import Sampling
from worker.engines.text.noise import gumbel_noise, noise_keys

#: Most probable tokens among which the bound of `top_p` is looked for first: sorting a vocabulary takes long.
_FIRST_TOP_P = 256
#: Tokens of a part of the vocabulary that is searched for its maximum.
_PART = 256


class TokenMask(Protocol):
    """A grammar that says which tokens may follow."""

    def fill_mask(self, bitmask: torch.Tensor, row: int) -> None:
        """Set the bits of the allowed tokens in this row of an int32 tensor of shape [rows, vocabulary / 32]."""


class TokenCounts:
    """Occurrences of each token in a row's text, for its penalties. Both tensors have shape [vocabulary]."""

    def __init__(self, prompt: Sequence[int], vocabulary: int, device: torch.device) -> None:
        self.generated = torch.zeros(vocabulary, device=device)
        self.present = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self.present[torch.tensor(prompt, dtype=torch.long, device=device)] = True
        self._number = 0

    def follow(self, tokens: Sequence[int]) -> None:
        """Count the generated tokens that are new since the last call."""
        new = torch.tensor(tokens[self._number :], dtype=torch.long, device=self.present.device)
        self._number = len(tokens)
        self.generated.index_add_(0, new, torch.ones(len(new), device=new.device))
        self.present[new] = True


class SampledRow(NamedTuple):
    """What decides on a row's next token, besides its logits."""

    sampling: Sampling
    #: Number of tokens generated before.
    position: int
    forbidden: Collection[int] = ()
    grammar: TokenMask | None = None
    counts: TokenCounts | None = None
    #: Number of alternatives to report with log-probabilities; None for no log-probabilities.
    logprobs: int | None = None


class Choice(NamedTuple):
    """A row's next token. `is_finite`: false if the logits have no maximum, which makes the token meaningless."""

    token: int
    is_finite: bool = True
    logprob: float = 0.0
    #: (token, log-probability) of the most probable tokens.
    top: Sequence[tuple[int, float]] = ()


def needs_counts(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1 or bool(sampling.presence_penalty) or bool(sampling.frequency_penalty)


@torch.inference_mode()
def choose(logits: torch.Tensor, rows: Sequence[SampledRow]) -> list[Choice]:
    """Return the next token of each row for float32 logits of shape [rows, vocabulary], which are kept."""
    if not rows:
        return []
    changed = _adjusted(logits, rows)
    values, tokens = _largest(changed)
    sampled = [place for place, row in enumerate(rows) if row.sampling.temperature > 0]
    if sampled:
        own = changed if len(sampled) == len(rows) else changed[sampled]
        tokens[sampled] = _sample(own, [rows[place] for place in sampled])
    chosen, is_finite = tokens.tolist(), torch.isfinite(values).tolist()
    choices = [Choice(*each) for each in zip(chosen, is_finite, strict=True)]
    reported = [place for place, row in enumerate(rows) if row.logprobs is not None]
    if reported:
        own = logits if len(reported) == len(rows) else logits[reported]
        number = max(rows[place].logprobs or 0 for place in reported)
        for place, (logprob, top) in zip(reported, _logprobs(own, tokens[reported], number), strict=True):
            choices[place] = choices[place]._replace(logprob=logprob, top=top[: rows[place].logprobs])
    return choices


def _largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the highest logit of each row and its first token.

    A CPU finds a maximum ten times as fast as its place: only the part that has the maximum is searched for it.
    """
    vocabulary = logits.shape[1]
    whole = vocabulary // _PART * _PART
    if logits.device.type != "cpu" or not whole:
        values, tokens = logits.max(-1)
        return values, tokens
    highest = logits[:, :whole].view(len(logits), -1, _PART).amax(-1)
    if whole < vocabulary:
        highest = torch.cat((highest, logits[:, whole:].amax(-1, keepdim=True)), 1)
    values, parts = highest.max(-1)
    searched = (parts[:, None] * _PART + torch.arange(_PART)).clamp_(max=vocabulary - 1)
    return values, searched.gather(1, logits.gather(1, searched).argmax(-1, keepdim=True))[:, 0]


def _adjusted(logits: torch.Tensor, rows: Sequence[SampledRow]) -> torch.Tensor:
    """Return logits with everything applied that changes the most probable token; the same tensor for nothing."""
    biased = [(place, *each) for place, row in enumerate(rows) for each in row.sampling.logit_bias]
    forbidden = [(place, token) for place, row in enumerate(rows) for token in row.forbidden]
    masked = [place for place, row in enumerate(rows) if row.grammar is not None]
    counted = [place for place, row in enumerate(rows) if row.counts is not None]
    if not (biased or forbidden or masked or counted):
        return logits
    logits, device, vocabulary = logits.clone(), logits.device, logits.shape[1]
    biased = [each for each in biased if each[1] < vocabulary]
    forbidden = [each for each in forbidden if each[1] < vocabulary]
    if biased:
        at, token, value = zip(*biased, strict=True)
        index = torch.tensor([at, token], device=device)
        logits.index_put_((index[0], index[1]), torch.tensor(value, device=device), accumulate=True)
    if forbidden:
        index = torch.tensor(forbidden, device=device).T
        logits[index[0], index[1]] = -math.inf
    if masked:
        _apply_grammars(logits, masked, [row.grammar for row in rows if row.grammar is not None])
    if counted:
        own = [row for row in rows if row.counts is not None]
        logits[counted] = _penalized(logits[counted], own)
    return logits


def _apply_grammars(logits: torch.Tensor, places: Sequence[int], grammars: Sequence[TokenMask]) -> None:
    vocabulary = logits.shape[1]
    bitmask = torch.zeros(len(places), (vocabulary + 31) // 32, dtype=torch.int32)
    for row, grammar in enumerate(grammars):
        grammar.fill_mask(bitmask, row)
    bits = (bitmask.to(logits.device)[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device)) & 1
    allowed = bits.flatten(1)[:, :vocabulary].to(torch.bool)
    logits[places] = logits[places].masked_fill_(~allowed, -math.inf)


def _penalized(logits: torch.Tensor, rows: Sequence[SampledRow]) -> torch.Tensor:
    counts = [row.counts for row in rows if row.counts is not None]
    generated, present = (
        torch.stack([each.generated for each in counts]),
        torch.stack([each.present for each in counts]),
    )
    repetition = _column([row.sampling.repetition_penalty for row in rows], logits)
    logits = torch.where(present, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
    logits -= _column([row.sampling.frequency_penalty for row in rows], logits) * generated
    logits -= _column([row.sampling.presence_penalty for row in rows], logits) * (generated > 0)
    return logits


def _sample(logits: torch.Tensor, rows: Sequence[SampledRow]) -> torch.Tensor:
    """Return a token of each row, by its noise. Logits are left as they are."""
    scaled = logits / _column([row.sampling.temperature for row in rows], logits)
    if any(row.sampling.min_p > 0 for row in rows):
        min_p = [math.log(row.sampling.min_p) if row.sampling.min_p > 0 else -math.inf for row in rows]
        bound = scaled.max(-1, keepdim=True).values + _column(min_p, scaled)
        scaled.masked_fill_(scaled < bound, -math.inf)
    if any(row.sampling.top_k or row.sampling.top_p < 1 for row in rows):
        scaled.masked_fill_(scaled < _lowest_kept(scaled, rows), -math.inf)
    keys = [noise_keys(row.sampling.seed, row.position) for row in rows]
    noise = gumbel_noise(torch.tensor(keys, dtype=torch.int32, device=logits.device), logits.shape[1])
    return noise.add_(scaled).argmax(-1)


def _lowest_kept(scaled: torch.Tensor, rows: Sequence[SampledRow]) -> torch.Tensor:
    """Return the lowest logit of each row that `top_k` and `top_p` keep, of shape [rows, 1]."""
    vocabulary = scaled.shape[1]
    top_k = [min(row.sampling.top_k or vocabulary, vocabulary) for row in rows]
    top_p = _column([row.sampling.top_p for row in rows], scaled)
    is_open = [k == vocabulary and row.sampling.top_p < 1 for k, row in zip(top_k, rows, strict=True)]
    number = max([k for k in top_k if k < vocabulary], default=1)
    if any(is_open):
        number = max(number, min(_FIRST_TOP_P, vocabulary))
    limits = torch.tensor(top_k, device=scaled.device)[:, None]
    opened = torch.tensor(is_open, device=scaled.device)[:, None]
    while True:
        values = scaled.topk(number, sorted=True).values
        is_kept = torch.arange(number, device=scaled.device) < limits
        values = values.masked_fill(~is_kept, -math.inf)
        # Among the kept tokens, if all of them are here; otherwise among all tokens.
        total = torch.where(limits <= number, values.logsumexp(-1, keepdim=True), scaled.logsumexp(-1, keepdim=True))
        probabilities = (values - total).exp()
        before = probabilities.cumsum(-1) - probabilities
        if number == vocabulary or bool(((before[:, -1:] >= top_p) | ~opened).all()):
            break
        number = vocabulary
    is_kept &= before < top_p
    is_kept[:, 0] = True
    lowest = torch.where(is_kept, values, math.inf).min(-1, keepdim=True).values
    is_bounded = [k < vocabulary or row.sampling.top_p < 1 for k, row in zip(top_k, rows, strict=True)]
    return torch.where(torch.tensor(is_bounded, device=scaled.device)[:, None], lowest, -math.inf)


def _logprobs(logits: torch.Tensor, tokens: torch.Tensor, number: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """Return each row's log-probability of its token, and its `number` most probable tokens with theirs."""
    total = logits.logsumexp(-1, keepdim=True)
    own = (logits.gather(-1, tokens[:, None]) - total)[:, 0].tolist()
    best = logits.topk(min(number, logits.shape[1]))
    tops = zip(best.indices.tolist(), (best.values - total).tolist(), strict=True)
    return [(each, list(zip(*top, strict=True))) for each, top in zip(own, tops, strict=True)]


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
