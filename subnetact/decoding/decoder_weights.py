"""`DecoderWeights`: a decoder's layers in one form, with the feed-forward of every width.

What no width changes (attention, norms, embedding, head) is there once; of the feed-forwards there
is one per served subnet and block, views of the same weights or copies in a faster form. Choosing
the width of an iteration is one look-up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from subnetact.decoding.linear_forms import Dense, JointForm, LinearForm, make_joint, make_linear
from supernet.checkpoint import Checkpoint
from supernet.definition import SupernetDefinition
from supernet.slicing import leading_slice


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
        self, checkpoint: Checkpoint, subnet_ids: Iterable[str] | None = None, form: str = "views"
    ):
        """Raises CheckpointError for unknown subnets, ValueError for no decoder or another form."""
        definition = checkpoint.definition
        if not definition.family.generates:
            raise ValueError(
                f"{checkpoint.name} is a {definition.family_name}, which makes no text; "
                "a decoder is needed (docs/decoder.md)"
            )
        self.config: Any = definition.config
        self.form = form
        self._state = {name: t.detach().float() for name, t in checkpoint.state.items()}
        self.layers = [self._layer(f"blocks.{i}") for i in range(self.config.depth)]
        self.embedding = self._state["embedding.weight"]
        self.norm = self._state["norm.weight"]
        table = self.embedding if self.config.tied else self._state["head.weight"]
        self.head = make_linear(form, table)
        wanted = checkpoint.subnet_ids if subnet_ids is None else tuple(subnet_ids)
        self.feed_forwards: dict[str, list[FeedForward]] = {}
        self._made: dict[tuple[str, int], FeedForward] = {}
        for subnet_id in wanted:
            arch = checkpoint.subnet(subnet_id).arch
            self.feed_forwards[subnet_id] = self._feed_forwards(definition, arch)

    def add(self, definition: SupernetDefinition, arch: Any) -> str:
        """Make a subnet of the space runnable that the checkpoint does not list; return its id.

        Raises ValueError when `arch` is outside the space.
        """
        definition.space.validate(arch)
        if arch.subnet_id not in self.feed_forwards:
            self.feed_forwards[arch.subnet_id] = self._feed_forwards(definition, arch)
        return arch.subnet_id

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

    def _feed_forwards(self, definition: SupernetDefinition, arch: Any) -> list[FeedForward]:
        shapes = definition.parameter_shapes(arch)
        return [self._feed_forward(f"blocks.{i}.mlp", shapes) for i in range(self.config.depth)]

    def _feed_forward(self, name: str, shapes: Any) -> FeedForward:
        """One per width of a block, also where several subnets have it."""
        key = (name, shapes[f"{name}.gate.weight"][0])
        if key not in self._made:
            gate, up, down = (
                leading_slice(self._state[f"{name}.{part}.weight"], shapes[f"{name}.{part}.weight"])
                for part in ("gate", "up", "down")
            )
            self._made[key] = FeedForward(
                make_joint(self.form, [Dense(gate), Dense(up)]), make_linear(self.form, down)
            )
        return self._made[key]
