"""Noticing a run that has learnt nothing: a subnet that is no better than chance.

A loss can be finite and a run finish with a network that answers one class. Chance is the share of
the most frequent class among the held-out labels; a subnet is told when it is not above that by
more than two standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from supernet import Arch

_STANDARD_ERRORS = 2.0


def chance_level(labels: torch.Tensor) -> float:
    """The accuracy on (N,) labels that tells nothing from chance: two standard errors above it."""
    share = float(labels.bincount().max()) / len(labels)
    return share + _STANDARD_ERRORS * math.sqrt(share * (1.0 - share) / len(labels))


def collapsed(accuracies: Mapping[Arch, float], labels: torch.Tensor) -> str:
    """Say which subnets learnt nothing, by accuracies on samples with these labels; else empty."""
    level = chance_level(labels)
    at_chance = [arch for arch, accuracy in accuracies.items() if accuracy <= level]
    if not at_chance:
        return ""
    worst = max(at_chance, key=lambda arch: accuracies[arch])
    who = "all" if len(at_chance) == len(accuracies) else f"{len(at_chance)} of {len(accuracies)}"
    return (
        f"{who} subnets measured are at chance: {worst.subnet_id} has {accuracies[worst]:.4f} on "
        f"{len(labels)} held-out samples, where always answering the most frequent class has up to "
        f"{level:.4f}. Training has collapsed or not begun: lower optimizer.lr, look at "
        "loss.distillation and at the labels, or train longer"
    )
