"""A decoder at batch 1: one-bit feed-forwards over int8 ones, all else int8 in both.

Without VNNI there are no int8 layers: the rival is float then, and all else float in both.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from serve.bench.actuation.rounds import medians_text, paired_ratio, rotated
from serve.bench.decoder.bench import random_checkpoint
from serve.bench.rows import Row, Tell, absent_row, row
from subnetact.decoding.linear_forms import has_form
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from supernet.checkpoint import Checkpoint
from supernet.definition import SupernetDefinition, define_supernet
from supernet.low_bit.low_bit_weights import LowBitWeights

_CONTEXT = 128
_SMALL: dict[str, Any] = {
    "vocab_size": 1024, "width": 256, "depth": 8, "num_heads": 8, "num_kv_heads": 4,
    "head_dim": 32, "hidden": 1024, "max_positions": 1024, "num_tokens": 128,
}  # fmt: skip


def benched_decoders() -> dict[str, SupernetDefinition]:
    """The small model, in the shape that configs/train_decoder_shakespeare.toml trains, and one
    whose weights are larger than a core's cache."""
    return {
        "small": define_supernet("decoder_tiny", **_SMALL),
        "smollm2_135m": define_supernet("smollm2_135m"),
    }


def decoder_rows(
    name: str, definition: SupernetDefinition, *, at_least_s: float, tell: Tell
) -> list[Row]:
    """Tokens per second of each, and their ratio: a decode of the largest behind 128 tokens."""
    checkpoint = with_one_bit(random_checkpoint(definition))
    largest = checkpoint.subnets[-1].subnet_id
    rival, packing = ("int8", "int8") if has_form("int8") else ("float", "views")
    ids = {rival: largest, "one_bit": f"{largest}-sb"}
    executor = StreamExecutor(checkpoint, subnet_ids=ids.values(), packing=packing)
    chunks = [Chunk(0, (1,))]
    table = executor.cache.table

    def prepare(_name: str) -> None:
        executor.release(0)
        table.reserve(0, _CONTEXT)
        table.advance(0, _CONTEXT)

    calls = {form: partial(executor.run, form_id, chunks) for form, form_id in ids.items()}
    samples_s = rotated(calls, at_least_s, prepare=prepare)
    detail = (
        f"1 decode behind {_CONTEXT} tokens, all else {rival}, 1 thread; {medians_text(samples_s)}"
    )
    figure = f"actuation/onebit/decoder/{name}"
    ratio = paired_ratio(samples_s, rival, "one_bit")
    tell(f"  {figure}/one_bit_over_{rival}: {ratio:.3f}")
    rates = [
        row(f"{figure}/{form}_tokens_per_s", 1.0 / median(taken), "1/s", detail)
        for form, taken in samples_s.items()
    ]
    over = row(f"{figure}/one_bit_over_{rival}", ratio, "ratio", detail)
    if rival == "int8":
        return [*rates, over]
    why = "int8 layers need VNNI, which this processor lacks"
    return [*rates, over, absent_row(f"{figure}/one_bit_over_int8", "ratio", why)]


def with_one_bit(checkpoint: Checkpoint) -> Checkpoint:
    """Return a decoder's checkpoint with one-bit weights made of its own, and entries of them."""
    entries = tuple(replace(s, precision="signed_binary") for s in checkpoint.subnets)
    return replace(
        checkpoint,
        low_bit=LowBitWeights.of(checkpoint.state, checkpoint.definition),
        low_bit_subnets=entries,
        norm_statistics={**checkpoint.norm_statistics, **{s.subnet_id: {} for s in entries}},
    )
