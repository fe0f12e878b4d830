"""Losses: labels for the full model, a teacher's soft outputs for the subnets."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from training.config import LossConfig

_RATIO_CLIP = 5.0


def label_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Cross-entropy of (B, K) logits against (B,) labels or (B, K) mixed ones, smoothed."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def soft_targets(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """(B, K) teacher logits to detached probabilities at a temperature."""
    return torch.softmax(logits.detach().float() / temperature, dim=1)


def distillation_loss(
    logits: torch.Tensor, targets: torch.Tensor, options: LossConfig
) -> torch.Tensor:
    """The loss of (B, K) logits against (B, K) teacher probabilities, times temperature squared."""
    log_q = torch.log_softmax(logits.float() / options.temperature, dim=1)
    if options.distillation == "alpha":
        per_sample = torch.maximum(
            alpha_divergence(targets, log_q, -1.0), alpha_divergence(targets, log_q, 1.0)
        )
    elif options.distillation == "kl":
        per_sample = alpha_divergence(targets, log_q, 1.0)
    else:
        per_sample = -(targets * log_q).sum(1)
    return per_sample.mean() * options.temperature**2


def alpha_divergence(p: torch.Tensor, log_q: torch.Tensor, alpha: float) -> torch.Tensor:
    """D_alpha(p || q) per sample, (B, K) each; alpha 1 is the Kullback-Leibler divergence.

    D = 1 / (alpha (alpha - 1)) * sum q [(p / q)^alpha - 1] (AlphaNet, ICML 2021). p / q is clipped
    at 5 as published, so that a class which q has almost ruled out can't dominate the gradient.
    """
    q = log_q.exp()
    ratio = (p / q.clamp_min(1e-12)).clamp_max(_RATIO_CLIP)
    if alpha == 1.0:
        return (p * (p.clamp_min(1e-12).log() - log_q)).sum(1)
    ratio = ratio.clamp_min(1e-6) if alpha < 0 else ratio
    return (q * (ratio**alpha - 1.0)).sum(1) / (alpha * (alpha - 1.0))
