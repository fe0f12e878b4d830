"""Losses of in-place distillation: labels for the full model, its soft outputs for the subnets."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def label_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy of (B, K) logits against (B,) labels, with label smoothing."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def soft_targets(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """(B, K) teacher logits to detached probabilities at a temperature."""
    return torch.softmax(logits.detach().float() / temperature, dim=1)


def distillation_loss(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Soft cross-entropy -sum p log q of (B, K) logits, scaled by temperature squared (DepS)."""
    log_probabilities = torch.log_softmax(logits.float() / temperature, dim=1)
    return -(targets * log_probabilities).sum(1).mean() * temperature**2
