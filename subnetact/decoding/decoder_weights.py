"""`DecoderWeights`: a decoder's layers in one form, with the feed-forward of every width.

What no width changes (attention, norms, embedding, head) is there once; of the feed-forwards there
is one per served subnet and block, views of the same weights, copies in a faster form, or, of a
subnet whose id ends in `-sb`, prefixes of the one set of one-bit weights. Choosing the width of an
iteration is one look-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from subnetact.decoding.linear_forms import Dense, JointForm, LinearForm, make_joint, make_linear
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


class Layer(NamedTuple):
    """One block but for its feed-forward; norms of queries and keys where the family has them."""

    norm1: torch.Tensor
    q_kv: JointForm
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    proj: LinearForm
    norm2: torch.Tensor


class DecoderWeights:
    """The layers of one decoder, and for each subnet the feed-forward of each of them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        subnet_ids: Iterable[str] | None = None,
        form: str = "views",
        device: torch.device | str = "cpu",
    ):
        """Raises CheckpointError for unknown subnets, ValueError for no decoder or another form.

        Every form is of CPUs; on another device there are views alone, and no one-bit weights.
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
        self._state = {
            name: t.detach().to(device, torch.float32) for name, t in checkpoint.state.items()
        }
        self.layers = [self._layer(f"blocks.{i}") for i in range(self.config.depth)]
        self.embedding = self._state["embedding.weight"]
        self.norm = self._state["norm.weight"]
        table = self.embedding if self.config.tied else self._state["head.weight"]
        self.head = make_linear(form, table)
        self._low_bit = checkpoint.low_bit if torch.device(device).type == "cpu" else None
        self._tables: dict[str, OneBitTable] = {}
        wanted = checkpoint.subnet_ids if subnet_ids is None else tuple(subnet_ids)
        self.feed_forwards: dict[str, list[FeedForward]] = {}
        self._made: dict[tuple[str, tuple[int, ...], str], FeedForward] = {}
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
        if form_id not in self.feed_forwards:
            self.feed_forwards[form_id] = self._feed_forwards(definition, arch, precision)
        return form_id

    def _layer(self, name: str) -> Layer:
        own = self._state
        attn = f"{name}.attn"
        joint = [Dense(own[f"{attn}.{n}.weight"], own.get(f"{attn}.{n}.bias")) for n in ("q", "kv")]
        return Layer(
            norm1=own[f"{name}.norm1.weight"],
            q_kv=make_joint(self.form, joint),
            q_norm=own.get(f"{attn}.q_norm.weight"),
            k_norm=own.get(f"{attn}.k_norm.weight"),
            proj=make_linear(self.form, own[f"{attn}.proj.weight"]),
            norm2=own[f"{name}.norm2.weight"],
        )

    def _feed_forwards(
        self, definition: SupernetDefinition, arch: Arch, precision: str
    ) -> list[FeedForward]:
        shapes = definition.parameter_shapes(arch)
        return [
            self._feed_forward(f"blocks.{i}.mlp", shapes, precision)
            for i in range(self.config.depth)
        ]

    def _feed_forward(self, name: str, shapes: Mapping[str, Shape], precision: str) -> FeedForward:
        """One per width of a block, also where several subnets have it."""
        gate, up, down = (f"{name}.{part}.weight" for part in ("gate", "up", "down"))
        key = (name, shapes[gate], precision)
        if key not in self._made:
            self._made[key] = (
                FeedForward(
                    make_joint(self.form, [Dense(self._sliced(n, shapes)) for n in (gate, up)]),
                    make_linear(self.form, self._sliced(down, shapes)),
                )
                if precision == "fp32"
                else self._one_bit(gate, up, down, shapes)
            )
        return self._made[key]

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
