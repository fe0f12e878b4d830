"""Rotary positions in fewer calls than the plain `rotate` (supernet/layers/causal.py), its twin.

    (-x2, x1) * sin  =  (x2, x1) * (-sin1, sin2)

so the sign goes into the sine once, not into every query and key.
"""

from __future__ import annotations

import torch


def signed_sine(sin: torch.Tensor) -> torch.Tensor:
    """(..., D) sines, as `rotary_angles` gives them, with the first half negated."""
    first, second = sin.chunk(2, -1)
    return torch.cat((-first, second), -1)


def turn(x: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Turn (..., D) by cosines and signed sines that broadcast against it."""
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat((second, first), -1), signed_sin)
