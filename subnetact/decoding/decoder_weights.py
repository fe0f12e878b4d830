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

from subnetact.decoding.linear_forms import LinearForm, make_linear
from supernet.checkpoint import Checkpoint
from supernet.definition import SupernetDefinition
from supernet.slicing import leading_slice


class FeedForward(NamedTuple):
    """down(silu(gate(x)) * up(x)) at one width; (T, C) in and out."""

    gate: LinearForm
    up: LinearForm
    down: LinearForm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)).mul_(self.up(x)))


class Layer(NamedTuple):
    """One block but for its feed-forward; norms of queries and keys where the family has them."""

    norm1: torch.Tensor
    q: LinearForm
    kv: LinearForm
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
        self._state = {name: t.float() for name, t in checkpoint.state.items()}
        self.layers = [self._layer(f"blocks.{i}") for i in range(self.config.depth)]
        self.embedding = self._state["embedding.weight"]
        self.norm = self._state["norm.weight"]
        table = self.embedding if self.config.tied else self._state["head.weight"]
        self.head = make_linear(form, table)
        wanted = checkpoint.subnet_ids if subnet_ids is None else tuple(subnet_ids)
        self.feed_forwards: dict[str, list[FeedForward]] = {}
        self._made: dict[tuple[str, tuple[int, ...]], LinearForm] = {}
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
        return Layer(
            norm1=own[f"{name}.norm1.weight"],
            q=make_linear(self.form, own[f"{name}.attn.q.weight"], own.get(f"{name}.attn.q.bias")),
            kv=make_linear(
                self.form, own[f"{name}.attn.kv.weight"], own.get(f"{name}.attn.kv.bias")
            ),
            q_norm=own.get(f"{name}.attn.q_norm.weight"),
            k_norm=own.get(f"{name}.attn.k_norm.weight"),
            proj=make_linear(self.form, own[f"{name}.attn.proj.weight"]),
            norm2=own[f"{name}.norm2.weight"],
        )

    def _feed_forwards(self, definition: SupernetDefinition, arch: Any) -> list[FeedForward]:
        shapes = definition.parameter_shapes(arch)
        return [
            FeedForward(
                *(
                    self._sliced(f"blocks.{i}.mlp.{part}.weight", shapes)
                    for part in ("gate", "up", "down")
                )
            )
            for i in range(self.config.depth)
        ]

    def _sliced(self, name: str, shapes: Any) -> LinearForm:
        """One layer per width of a block, also where several subnets have it."""
        key = (name, tuple(shapes[name]))
        if key not in self._made:
            self._made[key] = make_linear(
                self.form, leading_slice(self._state[name].detach(), shapes[name])
            )
        return self._made[key]
