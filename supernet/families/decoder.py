"""Elastic decoders of text: Llama, Mistral, SmolLM2, Qwen2 and Qwen3 in one module.

At full size this is the network of the Hugging Face folders `llama`, `mistral`, `qwen2` and
`qwen3`: grouped queries, rotary positions, RMSNorm, gated feed-forwards, a tied head or one of its
own, biases of query, key and value (Qwen2), norms of queries and keys (Qwen3), sliding windows.
Elastic in the way of MatFormer (Devvrit et al., NeurIPS 2024): each block's feed-forward keeps its
leading hidden units. A config may also let blocks keep fewer query heads per group (Flextron, Cai
et al., ICML 2024), and fewer blocks be kept. Keys and values have the same shape in every subnet,
so a sequence may change its subnet between two tokens.

Differences: query rows are rank-major, key and value one matrix (supernet/layers/causal.py). The
resolution of an arch is the number of tokens at which it is counted; others run as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from supernet.arch import Arch
from supernet.describe import Block
from supernet.family import ChannelGroup
from supernet.layers.blocks import BlockSequence
from supernet.layers.causal import Angles, GatedMlp, GroupedAttention, TiedHead, rotary_angles
from supernet.layers.transformer import init_transformer_weights, kept_blocks
from supernet.registry import supernet_family
from supernet.space import SearchSpace

Stream = tuple[torch.Tensor, Angles]  # (B, N, C) tokens, and the angles of their positions


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Which supernet: its full size, and what of it can be kept.

    `expand_choices` are shares of the feed-forward width, `heads_choices` query heads of each group
    of keys and values, `depth_choices` numbers of blocks; the last of each is the full size, and
    the latter two are empty where nothing of it is elastic. `windows` are, for each block, how
    many tokens a token reads, itself included (0: all); empty: all read all. `max_positions` is
    the longest context, `num_tokens` the length at which costs are counted.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    max_positions: int = 8192
    num_tokens: int = 128
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    expand_choices: tuple[float, ...] = (0.5, 0.75, 0.875, 1.0)
    heads_choices: tuple[int, ...] = ()
    depth_choices: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "depth", "num_heads", "num_kv_heads", "head_dim", "hidden")
        for name in (*sizes, "max_positions", "num_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed 1 or more")
        if self.num_heads % self.num_kv_heads or self.head_dim % 2:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads "
                f"{self.num_kv_heads}, and head_dim {self.head_dim} even"
            )
        if self.expand_choices[-1:] != (1.0,) or any(
            not float(self.hidden * share).is_integer() for share in self.expand_choices
        ):
            raise ValueError(
                f"expand_choices is {self.expand_choices}; the last must be 1, and each a share "
                f"of hidden {self.hidden} that is a whole number"
            )
        for name, full in (("heads_choices", self.ranks), ("depth_choices", self.depth)):
            choices = getattr(self, name)
            if choices and (choices[-1] != full or choices[0] < 1):
                raise ValueError(f"{name} is {choices}; allowed 1 or more, and the last {full}")
        if self.windows and (len(self.windows) != self.depth or min(self.windows) < 0):
            raise ValueError(
                f"windows is {self.windows}; allowed one for each of the {self.depth} blocks, of 1 "
                "token or more, or 0 for a block that reads all"
            )
        if self.num_tokens > self.max_positions:
            raise ValueError(
                f"num_tokens is {self.num_tokens}, allowed up to max_positions {self.max_positions}"
            )

    @property
    def num_classes(self) -> int:
        """A decoder's classes are the tokens of its vocabulary."""
        return self.vocab_size

    @property
    def in_channels(self) -> int:
        """Token ids have one channel."""
        return 1

    @property
    def ranks(self) -> int:
        """Query heads of each group of keys and values, at full size."""
        return self.num_heads // self.num_kv_heads

    def window(self, block: int) -> int:
        """How many tokens a token reads in a block, itself included; 0: all before it."""
        return self.windows[block] if self.windows else 0


class DecoderBlock(Block):
    """Attention, then gated MLP, each behind an RMSNorm and beside a shortcut."""

    def __init__(self, config: DecoderConfig, *, ranks: int, hidden: int, window: int):
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.norm1 = nn.RMSNorm(width, eps=eps)
        self.attn = GroupedAttention(
            width,
            ranks * config.num_kv_heads,
            config.num_kv_heads,
            config.head_dim,
            qkv_bias=config.qkv_bias,
            qk_norm=config.qk_norm,
            norm_eps=eps,
            window=window,
        )
        self.norm2 = nn.RMSNorm(width, eps=eps)
        self.mlp = GatedMlp(width, hidden)

    def forward(self, stream: Stream) -> Stream:
        x, angles = stream
        x = x + self.attn(self.norm1(x), angles)
        return x + self.mlp(self.norm2(x)), angles


def hidden_units(config: DecoderConfig, share: float) -> int:
    """How many hidden units a block keeps at a share of its feed-forward width."""
    return int(config.hidden * share)


def heads_per_group(config: DecoderConfig, arch: Arch) -> tuple[int, ...]:
    """Query heads of each group in every block that an arch keeps."""
    return arch.heads or (config.ranks,) * arch.depth[0]


def _space(config: DecoderConfig) -> SearchSpace:
    return SearchSpace(
        family="decoder",
        resolution=(config.num_tokens,),
        depth=(config.depth_choices or (config.depth,),),
        expand=config.expand_choices,
        heads=config.heads_choices,
    )


def _channel_groups(config: DecoderConfig) -> tuple[ChannelGroup, ...]:
    hidden = tuple(
        ChannelGroup(
            name=f"blocks.{i}.hidden",
            produced=((f"blocks.{i}.mlp.gate.weight", 0), (f"blocks.{i}.mlp.up.weight", 0)),
            consumed=((f"blocks.{i}.mlp.down.weight", 1),),
            activations_at=f"blocks.{i}.mlp.down",
        )
        for i in range(config.depth)
    )
    if len(config.heads_choices) < 2:
        return hidden
    # Heads of one group of keys and values are interchangeable, those of different ones are not.
    return hidden + tuple(
        ChannelGroup(
            name=f"blocks.{i}.heads{group}",
            produced=tuple(
                (f"blocks.{i}.attn.q.{part}", 0)
                for part in (("weight", "bias") if config.qkv_bias else ("weight",))
            ),
            consumed=((f"blocks.{i}.attn.proj.weight", 1),),
            units=config.num_heads,
            among=(group, config.num_kv_heads),
            activations_at=f"blocks.{i}.attn.proj",
        )
        for i in range(config.depth)
        for group in range(config.num_kv_heads)
    )


def _example_ids(config: DecoderConfig, arch: Arch, batch_size: int) -> torch.Tensor:
    return torch.ones(batch_size, arch.resolution, dtype=torch.long)


def _smollm2(width: int, depth: int, heads: int, kv_heads: int, hidden: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=49_152,
        width=width,
        depth=depth,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=64,
        hidden=hidden,
        rope_theta=100_000.0,
    )


@supernet_family(
    "decoder",
    config=DecoderConfig,
    space=_space,
    channel_groups=_channel_groups,
    example_input=_example_ids,
    generates=True,
    variants={
        "smollm2_135m": _smollm2(576, 30, 9, 3, 1536),
        "smollm2_360m": _smollm2(960, 32, 15, 5, 2560),
        "qwen2_0.5b": DecoderConfig(
            vocab_size=151_936,
            width=896,
            depth=24,
            num_heads=14,
            num_kv_heads=2,
            head_dim=64,
            hidden=4864,
            max_positions=32_768,
            rope_theta=1e6,
            norm_eps=1e-6,
            qkv_bias=True,
        ),
        "qwen3_0.6b": DecoderConfig(
            vocab_size=151_936,
            width=1024,
            depth=28,
            num_heads=16,
            num_kv_heads=8,
            head_dim=128,
            hidden=3072,
            max_positions=40_960,
            rope_theta=1e6,
            norm_eps=1e-6,
            qk_norm=True,
        ),
        "decoder_tiny": DecoderConfig(
            vocab_size=128,
            width=32,
            depth=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            hidden=64,
            max_positions=256,
            num_tokens=16,
            expand_choices=(0.25, 0.5, 0.75, 1.0),
        ),
    },
    letters={
        "d": "blocks; every other one goes first; all, where the config has no depth_choices",
        "h": "query heads of each group of keys and values; all, without heads_choices",
        "e": "share of each block's feed-forward width (0.5, 0.75, 0.875, 1)",
        "r": "tokens at which costs are counted (128)",
    },
)
class Decoder(nn.Module):
    """The network at one arch: (B, N) token ids to (B, N, vocabulary) logits of what follows."""

    def __init__(self, config: DecoderConfig, arch: Arch):
        super().__init__()
        self._head_dim, self._theta = config.head_dim, config.rope_theta
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        kept = kept_blocks(config.depth, arch.depth[0])
        ranks = heads_per_group(config, arch)
        self.blocks = BlockSequence(
            {
                str(i): DecoderBlock(
                    config, ranks=own, hidden=hidden_units(config, share), window=config.window(i)
                )
                for i, own, share in zip(kept, ranks, arch.expand, strict=True)
            }
        )
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.tied = config.tied
        self.head = (
            TiedHead() if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        )
        init_transformer_weights(self)

    def forward_features(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, N) ids to (B, N, C) tokens, normalised."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        angles = rotary_angles(positions, self._head_dim, self._theta)
        stream: Stream = (self.embedding(ids), angles)
        stream = self.blocks(stream)  # type: ignore[arg-type]
        return self.norm(stream[0])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        features = self.forward_features(ids)
        return self.head(features, self.embedding.weight) if self.tied else self.head(features)
