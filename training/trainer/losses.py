"""Losses: labels for the full model, a teacher's soft outputs for the subnets."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from training.config import LossConfig

_WEIGHT_CLIP = 5.0
_ALPHAS = (-1.0, 1.0)


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
        low, high = (alpha_divergence(targets, log_q, alpha) for alpha in _ALPHAS)
        per_sample = torch.where(low.detach() > high.detach(), low, high)
    elif options.distillation == "kl":
        per_sample = alpha_divergence(targets, log_q, 1.0)
    else:
        per_sample = -(targets * log_q).sum(1)
    return per_sample.mean() * options.temperature**2


def alpha_divergence(p: torch.Tensor, log_q: torch.Tensor, alpha: float) -> torch.Tensor:
    """D_alpha(p || q) per sample, (B, K) each; alpha 1 is the Kullback-Leibler divergence.

    With the importance weight w = (p / q)^alpha, clipped at 5 after the power as published, so that
    a class which one side has almost ruled out cannot dominate:

        value     c sum q (w - 1), with c = 1 / (alpha (alpha - 1))
        gradient  that of -sum q (w / alpha + c) log q, where q and w before the logarithm are fixed

    Without the clip the second is the first's gradient. Source: AlphaNet (Wang et al., ICML 2021),
    equation 7 and the published loss_ops.py.
    """
    if alpha == 1.0:
        return (p * (p.clamp_min(1e-12).log() - log_q)).sum(1)
    with torch.no_grad():
        q, base = log_q.exp(), 1.0 / (alpha * (alpha - 1.0))
        log_weight = alpha * (p.clamp_min(1e-38).log() - log_q)
        weight = log_weight.clamp_max(math.log(_WEIGHT_CLIP)).exp()
        value = (q * (weight - 1.0)).sum(1) * base
    surrogate = -(q * (weight / alpha + base) * log_q).sum(1)
    return value + surrogate - surrogate.detach()
