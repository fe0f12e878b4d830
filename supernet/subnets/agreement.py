"""How good a smaller decoder is: how often it would say the same next token as the largest.

The quality of a rung that policies weigh, a fraction like an accuracy. It needs no labels, only
text; numbers are comparable on the same text and tokenizer only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.subnets.extract import extract

TOP1_AGREEMENT = "top1_agreement"
"""The kind of quality measured here, as a profile names it."""


class Agreement(NamedTuple):
    """The share of tokens agreed on, its 95 % interval, and perplexity on the text (base e)."""

    share: float
    ci95: tuple[float, float]
    perplexity: float


@torch.inference_mode()
def next_tokens(net: torch.nn.Module, texts: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return what a network says follows each token of texts (B, N): ids (B, N), text by text.

    Raises ValueError for outputs that are not finite.
    """
    return [_logits(net, ids).argmax(-1) for ids in texts]


@torch.inference_mode()
def top1_agreement(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    archs: Sequence[Arch],
    batches: Iterable[torch.Tensor],
    reference: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Agreement]:
    """Compare subnets with the largest on texts (B, N); returns {subnet id: agreement}.

    `reference` is the state whose largest says which tokens are wanted (default: the same state).
    Raises ValueError when there is no text, or an output is not finite.
    """
    texts = list(batches)
    if not texts:
        raise ValueError("agreement needs at least one text, got none")
    largest = extract(
        state if reference is None else reference, definition, definition.space.largest
    )
    wanted = next_tokens(largest, texts)
    found: dict[str, Agreement] = {}
    for arch in archs:
        is_largest = arch == definition.space.largest and reference is None
        net = largest if is_largest else extract(state, definition, arch)
        agreed, count, loss, predicted = 0, 0, 0.0, 0
        for ids, want in zip(texts, wanted, strict=True):
            logits = _logits(net, ids)
            agreed += int((logits.argmax(-1) == want).sum())
            count += want.numel()
            followed = ids[:, 1:].flatten()
            loss += torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), followed, reduction="sum"
            ).item()
            predicted += followed.numel()
        perplexity = math.exp(min(loss / max(predicted, 1), 700.0))
        found[arch.subnet_id] = Agreement(agreed / count, _interval(agreed, count), perplexity)
    return found


def _logits(net: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return logits (B, N, V); of those that are not finite all would agree on some token."""
    logits = net(ids)
    if not math.isfinite(float(logits.sum())):  # one that is not leaves no sum that is
        raise ValueError("the output of the network is not finite: its weights are damaged")
    return logits


def _interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson, JASA 1927)."""
    z, share = 1.959964, hits / count
    center = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
