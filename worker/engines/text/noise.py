"""Noise that follows from a seed, a position and a token alone: a text that moves goes on exactly as it would have.

The bits are equal on every device, because only integers are computed until the last step.
"""

from __future__ import annotations

import torch

_MASK = 2**64 - 1
#: Of SplitMix64 and of its first finalizer.
_INCREMENT, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
#: A finalizer of 32 bits with a small bias (`lowbias32`), as signed numbers.
_MIX_32_1, _MIX_32_2 = 0x7FEB352D, 0x846CA68B - 2**32
#: Noise has so many bits: `n + 0.5` is exact in float32 for all of them, and neither end becomes 0 or 1.
_BITS = 23


def noise_keys(seed: int, position: int) -> tuple[int, int]:
    """Return the keys of the noise at a position of the text of a seed, as signed numbers of 32 bits."""
    mixed = _splitmix((_splitmix(seed & _MASK) + position * _INCREMENT) & _MASK)
    return _signed(mixed & 0xFFFFFFFF), _signed(mixed >> 32)


def gumbel_noise(keys: torch.Tensor, size: int) -> torch.Tensor:
    """Return Gumbel noise of shape [rows, size] in float32 for int32 keys of shape [rows, 2].

    The highest value of `logits + noise` is a sample of `softmax(logits)`.
    """
    first, second = keys[:, :1], keys[:, 1:]
    bits = torch.arange(size, dtype=torch.int32, device=keys.device) * -1640531527 ^ first
    bits ^= _shifted(bits, 16)
    bits *= _MIX_32_1
    bits ^= _shifted(bits, 15)
    bits ^= second
    bits *= _MIX_32_2
    bits ^= _shifted(bits, 16)
    uniform = _shifted(bits, 32 - _BITS).to(torch.float32).add_(0.5).mul_(2.0**-_BITS)
    return uniform.log_().neg_().log_().neg_()


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shift to the right, and fill with zeros."""
    return (bits >> by).bitwise_and_((1 << (32 - by)) - 1)


def _splitmix(value: int) -> int:
    value = (value + _INCREMENT) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value
