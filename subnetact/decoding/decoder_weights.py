"""`DecoderWeights`: every block of every served subnet of a decoder, in one form.

What no subnet changes (norms, embedding, head) is there once. Of attentions there is one per block
and number of heads, of feed-forwards one per block and width, whichever subnets have them: views of
the same weights, copies in a faster form, or, of a subnet whose id ends in `-sb`, prefixes of the
one set of one-bit weights. Choosing the subnet of an iteration is one look-up.

A block that a subnet leaves out still writes keys and values, made of what passes it by: so any
subnet reads what any other has cached, and a stream may change its depth between two tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from subnetact.decoding.linear_forms import (
    Dense,
    JointForm,
    LinearForm,
    make_joint,
    make_linear,
    make_stacked,
)
from subnetact.decoding.one_bit_linear import OneBitTable, one_bit_linear
from supernet.arch import Arch
from supernet.checkpoint import Checkpoint
from supernet.definition import SupernetDefinition
from supernet.describe import Shape
from supernet.served_form import ServedForm
from supernet.slicing import leading_slice

_PRECISIONS = ("fp32", "signed_binary")


class FeedForward(NamedTuple):
    """down(silu(gate(x)) * up(x)) at one width; (T, C) in and out."""

    gate_up: JointForm
    down: LinearForm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x)
        return self.down(F.silu(gate).mul_(up))


class CutLayer(NamedTuple):
    """A layer and the pieces of it that workers share out between them."""

    whole: LinearForm
    pieces: tuple[LinearForm, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole(x)


class _Sum(NamedTuple):
    """The layer whose outputs are those of its pieces, added up."""

    pieces: tuple[LinearForm, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = self.pieces[0](x)
        for piece in self.pieces[1:]:
            y = y + piece(x)
        return y


class _Row(NamedTuple):
    """The layer whose outputs are those of its pieces, side by side."""

    pieces: tuple[LinearForm, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([piece(x) for piece in self.pieces], -1)


def cut_evenly(size: int, count: int) -> list[int]:
    """Return where `size` things are cut into `count` pieces: at multiples of 16 if they are many.

    Fewer than `count` are one piece.

    >>> cut_evenly(1000, 2), cut_evenly(10, 3), cut_evenly(2, 3)
    ([0, 496, 1000], [0, 3, 6, 10], [0, 2])
    """
    if size < count:
        return [0, size]
    unit = 16 if size >= 32 * count else 1
    return [*(size * i // (count * unit) * unit for i in range(count)), size]


class HeadsForm(NamedTuple):
    """An attention's linear layers at one number of query heads per group (`ranks`)."""

    ranks: int
    q_kv: LinearForm  # (T, C) to queries, keys and values (T, (ranks + 2) * groups * D)
    proj: LinearForm


class Layer(NamedTuple):
    """A block of a subnet; norms of queries and keys where the family has them."""

    norm1: torch.Tensor
    heads: HeadsForm
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    norm2: torch.Tensor
    feed_forward: LinearForm  # (T, C) in and out; a `FeedForward`, or a `CutLayer` of such


class SkippedLayer(NamedTuple):
    """A block that a subnet leaves out, which writes keys and values for those that do not."""

    norm1: torch.Tensor
    kv: LinearForm
    k_norm: torch.Tensor | None


class DecoderWeights:
    """The layers of one decoder: of each subnet one of `Layer` or `SkippedLayer` per block."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        subnet_ids: Iterable[str] | None = None,
        form: str = "views",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pieces: int = 1,
    ):
        """Raises CheckpointError for unknown subnets, ValueError for no decoder or another form.

        Float feed-forwards and the head are cut into `pieces`, one for each worker of several.
        Forms but views are a CPU's, and of float32; elsewhere there are no one-bit weights either.
        """
        definition = checkpoint.definition
        if not definition.family.generates:
            raise ValueError(
                f"{checkpoint.name} is a {definition.family_name}, which makes no text; "
                "a decoder is needed (docs/decoder.md)"
            )
        self.config: Any = definition.config
        if torch.device(device).type != "cpu" and form != "views":
            raise ValueError(f"packing is {form!r}, on {device} allowed views")
        self.form = form
        self._pieces = pieces
        self._state = {n: t.detach().to(device, dtype) for n, t in checkpoint.state.items()}
        self.embedding = self._state["embedding.weight"]
        self.norm = self._state["norm.weight"]
        table = self.embedding if self.config.tied else self._state["head.weight"]
        self.head = self._cut_head(table)
        self._low_bit = checkpoint.low_bit if torch.device(device).type == "cpu" else None
        self._tables: dict[str, OneBitTable] = {}
        self.subnets: dict[str, tuple[Layer | SkippedLayer, ...]] = {}
        self._feed_forwards: dict[tuple[str, Shape, str], LinearForm] = {}
        self._heads: dict[tuple[str, Shape], HeadsForm] = {}
        self._skipped: dict[str, SkippedLayer] = {}
        wanted = checkpoint.subnet_ids if subnet_ids is None else tuple(subnet_ids)
        for subnet_id in wanted:
            subnet = checkpoint.subnet(subnet_id)
            self.add(definition, subnet.arch, subnet.precision)

    def add(self, definition: SupernetDefinition, arch: Arch, precision: str = "fp32") -> str:
        """Make a subnet of the space runnable, served by the checkpoint or not; return its id.

        Raises ValueError when `arch` is outside the space, or there are no one-bit weights.
        """
        definition.space.validate(arch)
        if precision not in _PRECISIONS:
            raise ValueError(
                f"precision of a decoder's subnet is {precision!r}, allowed "
                f"{', '.join(_PRECISIONS)}; int8 is a packing of all its layers"
            )
        form_id = ServedForm(arch.subnet_id, precision).form_id
        if form_id not in self.subnets:
            shapes = definition.parameter_shapes(arch)
            self.subnets[form_id] = tuple(
                self._layer(f"blocks.{i}", shapes, precision)
                if f"blocks.{i}.norm1.weight" in shapes
                else self._skipped_layer(f"blocks.{i}")
                for i in range(self.config.depth)
            )
        return form_id

    def _layer(self, name: str, shapes: Mapping[str, Shape], precision: str) -> Layer:
        own, attn = self._state, f"{name}.attn"
        return Layer(
            norm1=own[f"{name}.norm1.weight"],
            heads=self._heads_form(attn, shapes),
            q_norm=own.get(f"{attn}.q_norm.weight"),
            k_norm=own.get(f"{attn}.k_norm.weight"),
            norm2=own[f"{name}.norm2.weight"],
            feed_forward=self._feed_forward(f"{name}.mlp", shapes, precision),
        )

    def _skipped_layer(self, name: str) -> SkippedLayer:
        if name not in self._skipped:
            own, attn = self._state, f"{name}.attn"
            self._skipped[name] = SkippedLayer(
                own[f"{name}.norm1.weight"],
                make_linear(self.form, own[f"{attn}.kv.weight"], own.get(f"{attn}.kv.bias")),
                own.get(f"{attn}.k_norm.weight"),
            )
        return self._skipped[name]

    def _heads_form(self, attn: str, shapes: Mapping[str, Shape]) -> HeadsForm:
        """One per number of heads of a block, also where several subnets have it."""
        key = (attn, shapes[f"{attn}.q.weight"])
        if key not in self._heads:
            config = self.config
            joint = [
                Dense(
                    self._sliced(f"{attn}.{part}.weight", shapes),
                    self._sliced(f"{attn}.{part}.bias", shapes) if config.qkv_bias else None,
                )
                for part in ("q", "kv")
            ]
            self._heads[key] = HeadsForm(
                key[1][0] // (config.num_kv_heads * config.head_dim),
                make_stacked(self.form, joint),
                make_linear(self.form, self._sliced(f"{attn}.proj.weight", shapes)),
            )
        return self._heads[key]

    def _feed_forward(self, name: str, shapes: Mapping[str, Shape], precision: str) -> LinearForm:
        """One per width of a block, also where several subnets have it."""
        gate, up, down = (f"{name}.{part}.weight" for part in ("gate", "up", "down"))
        key = (name, shapes[gate], precision)
        if key not in self._feed_forwards:
            self._feed_forwards[key] = (
                self._cut_feed_forward(*(self._sliced(n, shapes) for n in (gate, up, down)))
                if precision == "fp32"
                else self._one_bit(gate, up, down, shapes)
            )
        return self._feed_forwards[key]

    def _cut_feed_forward(
        self, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
    ) -> FeedForward | CutLayer:
        """By hidden units: the outputs of all pieces add up to the whole's."""

        def of(first: int, last: int) -> FeedForward:
            joint = [Dense(weight[first:last]) for weight in (gate, up)]
            return FeedForward(
                make_joint(self.form, joint), make_linear(self.form, down[:, first:last])
            )

        pieces = tuple(of(*bounds) for bounds in pairwise(cut_evenly(len(gate), self._pieces)))
        if len(pieces) == 1:
            return pieces[0]
        # Views of the whole cost nothing; a copy of it would be one more.
        return CutLayer(of(0, len(gate)) if self.form == "views" else _Sum(pieces), pieces)

    def _cut_head(self, table: torch.Tensor) -> LinearForm:
        """By tokens of the vocabulary: the outputs of all pieces lie side by side."""
        bounds = cut_evenly(len(table), self._pieces)
        pieces = tuple(make_linear(self.form, table[a:b]) for a, b in pairwise(bounds))
        if len(pieces) == 1:
            return pieces[0]
        is_free = self.form == "views"
        return CutLayer(make_linear(self.form, table) if is_free else _Row(pieces), pieces)

    def _sliced(self, name: str, shapes: Mapping[str, Shape]) -> torch.Tensor:
        return leading_slice(self._state[name], shapes[name])

    def _one_bit(self, gate: str, up: str, down: str, shapes: Mapping[str, Shape]) -> FeedForward:
        joint = [one_bit_linear(self._table(name), shapes[name]) for name in (gate, up)]
        return FeedForward(
            lambda x: [layer(x) for layer in joint],
            one_bit_linear(self._table(down), shapes[down]),
        )

    def _table(self, name: str) -> OneBitTable:
        """The words of a whole weight, of which every width reads a prefix."""
        if self._low_bit is None:
            raise ValueError(
                "there are no one-bit weights; make them with `supernet precision --to "
                "signed_binary`, and run them on a CPU"
            )
        if name not in self._tables:
            self._tables[name] = OneBitTable.of(self._low_bit.tensors[name])
        return self._tables[name]
