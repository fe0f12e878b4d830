"""Elastic BERT encoders (Devlin et al., NAACL 2019) with a classification head.

At full size this is the encoder that Hugging Face-format folders hold (BERT, MiniLM), elastic in
the way of DynaBERT (Hou et al., NeurIPS 2020): depth (every other block goes first), attention
heads and feed-forward neurons per block. The resolution of an arch is the number of tokens at
which it is counted; shorter inputs run as they are.

Differences: query, key and value are one head-major matrix (supernet/layers/transformer.py).
Tokens equal to `pad_id` are masked, so the ids alone are the input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from supernet.arch import Arch
from supernet.describe import Block
from supernet.family import ChannelGroup
from supernet.layers.blocks import BlockSequence
from supernet.layers.transformer import (
    Attention,
    Mlp,
    init_transformer_weights,
    kept_blocks,
    transformer_groups,
)
from supernet.registry import supernet_family
from supernet.space import SearchSpace

Stream = tuple[torch.Tensor, torch.Tensor]  # (B, N, C) tokens and their (B, 1, 1, N) mask


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Which supernet: its full size and the choices below it; `expand` is FFN over width."""

    num_classes: int = 2
    vocab_size: int = 30522
    max_positions: int = 512
    num_token_types: int = 2
    num_tokens: int = 128
    pad_id: int = 0
    width: int = 384
    depth: int = 6
    num_heads: int = 12
    depth_choices: tuple[int, ...] = (3, 4, 5, 6)
    heads_choices: tuple[int, ...] = (3, 6, 9, 12)
    expand_choices: tuple[float, ...] = (1, 2, 3, 4)
    ln_eps: float = 1e-12

    def __post_init__(self) -> None:
        for name, full in (("depth_choices", self.depth), ("heads_choices", self.num_heads)):
            if getattr(self, name)[-1] != full:
                raise ValueError(f"{name} is {getattr(self, name)}; the last must be {full}")
        if self.num_tokens > self.max_positions or self.width % self.num_heads:
            raise ValueError(
                f"num_tokens {self.num_tokens} must be at most max_positions "
                f"{self.max_positions}, and width {self.width} a multiple of num_heads "
                f"{self.num_heads}"
            )

    @property
    def in_channels(self) -> int:
        """Token ids have one channel."""
        return 1


class BertEmbedding(Block):
    """Words, positions and token types, summed and normalised; (B, N) ids to (B, N, C)."""

    def __init__(
        self, vocab_size: int, max_positions: int, num_token_types: int, width: int, ln_eps: float
    ):
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_positions, width)
        self.token_types = nn.Embedding(num_token_types, width)
        self.norm = nn.LayerNorm(width, eps=ln_eps)

    def forward(self, ids: torch.Tensor, token_types: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        summed = self.words(ids) + self.token_types(token_types) + self.positions(positions)
        return self.norm(summed)


class BertBlock(Block):
    """Attention, then MLP, each beside a shortcut and followed by a LayerNorm."""

    def __init__(self, width: int, num_heads: int, head_dim: int, hidden: int, ln_eps: float):
        super().__init__()
        self.attn = Attention(width, num_heads, head_dim)
        self.norm1 = nn.LayerNorm(width, eps=ln_eps)
        self.mlp = Mlp(width, hidden)
        self.norm2 = nn.LayerNorm(width, eps=ln_eps)

    def forward(self, stream: Stream) -> Stream:
        x, mask = stream
        x = self.norm1(x + self.attn(x, mask))
        return self.norm2(x + self.mlp(x)), mask


def _space(config: BertConfig) -> SearchSpace:
    return SearchSpace(
        family="bert",
        resolution=(config.num_tokens,),
        depth=(config.depth_choices,),
        heads=config.heads_choices,
        expand=config.expand_choices,
    )


def _channel_groups(config: BertConfig) -> tuple[ChannelGroup, ...]:
    return transformer_groups([f"blocks.{i}" for i in range(config.depth)], config.num_heads)


def _example_ids(config: BertConfig, arch: Arch, batch_size: int) -> torch.Tensor:
    return torch.ones(batch_size, arch.resolution, dtype=torch.long)


@supernet_family(
    "bert",
    config=BertConfig,
    space=_space,
    channel_groups=_channel_groups,
    example_input=_example_ids,
    variants={
        "minilm_l6": BertConfig(),
        "minilm_l12": BertConfig(depth=12, depth_choices=(6, 8, 10, 12)),
        "bert_base": BertConfig(width=768, depth=12, depth_choices=(6, 8, 10, 12)),
        "bert_tiny": BertConfig(
            width=128, depth=2, num_heads=2, depth_choices=(1, 2), heads_choices=(1, 2)
        ),
    },
    letters={
        "d": "blocks (MiniLM-L6 3 to 6, 12 layers 6, 8, 10, 12); every other one goes first",
        "h": "attention heads of a block (3, 6, 9, 12)",
        "e": "feed-forward width over the stream's width (1, 2, 3, 4)",
        "r": "tokens of a sequence (128)",
    },
)
class Bert(nn.Module):
    """The network at one arch: (B, N) token ids to (B, num_classes) logits."""

    def __init__(self, config: BertConfig, arch: Arch):
        super().__init__()
        self._pad_id = config.pad_id
        width, eps = config.width, config.ln_eps
        self.embeddings = BertEmbedding(
            config.vocab_size, config.max_positions, config.num_token_types, width, eps
        )
        kept = kept_blocks(config.depth, arch.depth[0])
        self.blocks = BlockSequence(
            {
                str(i): BertBlock(
                    width, heads, width // config.num_heads, round(width * ratio), eps
                )
                for i, heads, ratio in zip(kept, arch.heads, arch.expand, strict=True)
            }
        )
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, config.num_classes)
        init_transformer_weights(self)

    def forward_features(
        self, ids: torch.Tensor, token_types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, N) ids to (B, N, C) tokens. The first token is never masked."""
        types = torch.zeros_like(ids) if token_types is None else token_types
        is_first = torch.arange(ids.shape[1], device=ids.device) == 0
        mask = (ids.ne(self._pad_id) | is_first)[:, None, None, :]  # (B, 1, 1, N)
        stream: Stream = (self.embeddings(ids, types), mask)
        for_all_blocks: Stream = self.blocks(stream)  # type: ignore[arg-type]
        return for_all_blocks[0]

    def forward(self, ids: torch.Tensor, token_types: torch.Tensor | None = None) -> torch.Tensor:
        first = self.forward_features(ids, token_types)[:, 0]
        return self.classifier(torch.tanh(self.pooler(first)))
