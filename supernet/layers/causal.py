"""Shared pieces of the elastic decoders: grouped causal attention, rotary positions, gated MLP.

Query rows are stored rank-major: H query heads read KV groups of keys and values, R = H / KV ranks
each, and row block `r * KV + g` of `q` is rank r of group g. So fewer ranks are a leading
slice while keys and values stay whole. `B, N, D, C` in comments are batch, tokens, head dimension
and the width of the residual stream.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

Angles = tuple[torch.Tensor, torch.Tensor]  # cosine and sine, (N, D) each


def rotary_angles(positions: torch.Tensor, head_dim: int, theta: float) -> Angles:
    """Cosine and sine of rotary positions (Su et al., RoFormer, 2021), (N,) to (N, D) each.

    In the order of Hugging Face and GPT-NeoX: entry i turns with entry i + D / 2.
    """
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None].float() * (1.0 / theta ** (steps / head_dim))
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn (..., D) by angles that broadcast against it."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class CausalCore(nn.Module):
    """softmax(q k^T / sqrt(D)) v, each token reading those up to itself; its MACs are counted.

    With a `window` it reads the last so many of them, itself included (Mistral's rule; 0: all).
    """

    def __init__(self, window: int = 0):
        super().__init__()
        self._window = window

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # q (B, H, N, D) with the heads of a group in one run, k and v (B, KV, N, D)
        length = q.shape[2]
        if not 0 < self._window < length:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        positions = torch.arange(length, device=q.device)
        distance = positions[:, None] - positions
        visible = (distance >= 0) & (distance < self._window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)


class GroupedAttention(nn.Module):
    """Causal self-attention whose query heads share keys and values; (B, N, C) in and out.

    With `qk_norm`, queries and keys are normalised per head before they are turned (Qwen3).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool,
        qk_norm: bool,
        norm_eps: float,
        window: int = 0,
    ):
        super().__init__()
        self._num_kv_heads, self._head_dim = num_kv_heads, head_dim
        self.q = nn.Linear(width, num_heads * head_dim, bias=qkv_bias)
        self.kv = nn.Linear(width, 2 * num_kv_heads * head_dim, bias=qkv_bias)
        if qk_norm:
            self.q_norm = nn.RMSNorm(head_dim, eps=norm_eps)
            self.k_norm = nn.RMSNorm(head_dim, eps=norm_eps)
        self._has_norm = qk_norm
        self.core = CausalCore(window)
        self.proj = nn.Linear(num_heads * head_dim, width, bias=False)

    def forward(self, x: torch.Tensor, angles: Angles) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (-1, self._num_kv_heads, self._head_dim))  # (B, N, R, KV, D)
        k, v = self.kv(x).unflatten(-1, (2, self._num_kv_heads, self._head_dim)).unbind(2)
        if self._has_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        cos, sin = angles
        q = rotate(q, cos[:, None, None], sin[:, None, None])
        k = rotate(k, cos[:, None], sin[:, None])
        grouped = q.permute(0, 3, 2, 1, 4).flatten(1, 2)  # (B, KV * R, N, D)
        mixed = self.core(grouped, k.transpose(1, 2), v.transpose(1, 2))
        ranked = mixed.unflatten(1, (self._num_kv_heads, -1)).permute(0, 3, 2, 1, 4)
        return self.proj(ranked.flatten(2))


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, GLU variants, 2020); (B, N, C) in and out."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class TiedHead(nn.Module):
    """Logits by the embedding's own table; a module of its own so that its MACs are counted."""

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return F.linear(x, table)
