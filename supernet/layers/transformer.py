"""Shared pieces of the elastic transformers: attention, MLP, and which blocks a depth keeps.

Attention weights are stored head-major: the rows of `qkv` are query, key and value of head 0, then
of head 1, and so on, so that fewer heads are a leading slice. `B, N, H, D` in comments are batch,
tokens, heads and head dimension, `C` the width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from supernet.family import ChannelGroup


class AttentionCore(nn.Module):
    """softmax(q k^T / sqrt(D)) v; a module of its own so that its MACs can be counted."""

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:  # (B, H, N, D) each; mask (B, 1, 1, N), True where a token may be read
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Attention(nn.Module):
    """Multi-head self-attention; (B, N, C) in and out. The head dimension is fixed."""

    def __init__(self, width: int, num_heads: int, head_dim: int):
        super().__init__()
        self._head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * num_heads * head_dim)
        self.core = AttentionCore()
        self.proj = nn.Linear(num_heads * head_dim, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).view(B, N, -1, 3, self._head_dim)  # (B, N, H, 3, D)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # (B, H, N, D)
        return self.proj(self.core(q, k, v, mask).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU between; (B, N, C) in and out."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def kept_blocks(full_depth: int, depth: int) -> tuple[int, ...]:
    """Indices (from 0) of the blocks that a depth keeps: every other one goes first.

    Block n (from 1) of L is dropped at depth D when floor(n (L - D) / L) exceeds
    floor((n - 1) (L - D) / L), which spreads the L - D dropped blocks evenly (LayerDrop, Fan et
    al., ICLR 2020, as DynaBERT uses it).

    >>> kept_blocks(6, 3), kept_blocks(4, 3)
    ((0, 2, 4), (0, 1, 2))
    """
    dropped = full_depth - depth
    return tuple(
        n - 1
        for n in range(1, full_depth + 1)
        if n * dropped // full_depth == (n - 1) * dropped // full_depth
    )


def transformer_groups(blocks: Sequence[str], num_heads: int) -> tuple[ChannelGroup, ...]:
    """Whole heads, ordered by what `proj` reads of them, and the hidden units of the MLP."""
    return tuple(
        group
        for block in blocks
        for group in (
            ChannelGroup(
                name=f"{block}.heads",
                produced=((f"{block}.attn.qkv.weight", 0), (f"{block}.attn.qkv.bias", 0)),
                consumed=((f"{block}.attn.proj.weight", 1),),
                units=num_heads,
            ),
            ChannelGroup(
                name=f"{block}.hidden",
                produced=((f"{block}.mlp.fc1.weight", 0), (f"{block}.mlp.fc1.bias", 0)),
                consumed=((f"{block}.mlp.fc2.weight", 1),),
            ),
        )
    )


def init_transformer_weights(net: nn.Module) -> None:
    """Draw weights from a normal distribution of deviation 0.02, biases zero; not on meta."""
    if torch.get_default_device().type == "meta":
        return
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
