"""Text on which a decoder's activations are measured, and text on which its widths are compared.

Activations are measured on text drawn from the network itself at temperature 1, which is as broad
as what it was trained on, and on passages of files that are given. Narrow text misleads: SmolLM2's
perplexity on Shakespeare at three quarters of the width is 66 when sorted by drawn text, 71 when
half of it is the packaged text, 95 by that alone (50 by other Shakespeare, 30 at full width).

Widths are compared on passages of the files, or of what every Python brings (its help's topics).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from supernet.text import TextSpec
from supernet.tokenizer import Tokenizer
from supernet.weights.weight_files import WeightsError

PASSAGES, PASSAGE_TOKENS = 8, 128
DRAWN, DRAWN_TOKENS = 12, 64


def packaged_text() -> str:
    """The topics of Python's own help: half a megabyte of English prose and code."""
    from pydoc_data import topics

    return "\n\n".join(topics.topics.values())


def passages(
    tokenizer: Tokenizer, text: str, *, held_out: bool = False, vocab_size: int
) -> list[torch.Tensor]:
    """Return passages (1, N) spread evenly over a text; the held-out ones lie between the others.

    Raises WeightsError for a text that is too short, or ids that the network does not have.
    """
    size = len(text) // (2 * PASSAGES)
    starts = [(2 * i + held_out) * size for i in range(PASSAGES)]
    rows = [tokenizer.encode(text[s : s + size])[:PASSAGE_TOKENS] for s in starts]
    if min(map(len, rows)) < 16:
        raise WeightsError(
            f"calibration text of {len(text)} characters is too short; give some 20,000 or more"
        )
    if max(map(max, rows)) >= vocab_size:
        raise WeightsError(
            f"the tokenizer makes id {max(map(max, rows))}, the network has {vocab_size} rows; "
            "they do not belong together"
        )
    return [torch.tensor([row]) for row in rows]


@torch.inference_mode()
def drawn_ids(net: Any, first_ids: Sequence[int], *, seed: int = 0) -> torch.Tensor:
    """Draw texts from a decoder at temperature 1, (DRAWN, DRAWN_TOKENS); each begins with one id.

    Every token runs the whole context again: plain, and for so few tokens fast enough.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[first_ids[i % len(first_ids)]] for i in range(DRAWN)])
    for _ in range(DRAWN_TOKENS - 1):
        last = net.forward_features(ids)[:, -1:]
        logits = net.head(last, net.embedding.weight) if net.tied else net.head(last)
        drawn = torch.multinomial(logits[:, 0].softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, drawn], 1)
    return ids


def calibration_batches(
    net: Any, text: TextSpec, tokenizer: Tokenizer, texts: Iterable[str], vocab_size: int
) -> list[torch.Tensor]:
    """Return what a decoder is calibrated on: rows drawn from it, and passages of texts given."""
    starts = [i for i in (text.bos_id, *text.eos_ids) if i is not None and i < vocab_size] or [0]
    batches = list(drawn_ids(net, list(dict.fromkeys(starts))).split(4))
    for each in texts:
        batches += passages(tokenizer, each, vocab_size=vocab_size)
    return batches
