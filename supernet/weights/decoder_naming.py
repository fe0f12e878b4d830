"""How Hugging Face names decoders: Llama, Mistral, Qwen2 and Qwen3 alike.

Theirs differ from ours in two ways (supernet/layers/causal.py): keys and values are two matrices,
and query heads stand group by group, ours rank by rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from supernet.definition import SupernetDefinition

DECODER_RULES = (
    (r"^embedding\.", "model.embed_tokens."),
    (r"^blocks\.(\d+)\.norm1\.", r"model.layers.\1.input_layernorm."),
    (r"^blocks\.(\d+)\.norm2\.", r"model.layers.\1.post_attention_layernorm."),
    (r"^blocks\.(\d+)\.attn\.(q|k|v)\.", r"model.layers.\1.self_attn.\2_proj."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"model.layers.\1.self_attn.o_proj."),
    (r"^blocks\.(\d+)\.attn\.(q|k)_norm\.", r"model.layers.\1.self_attn.\2_norm."),
    (r"^blocks\.(\d+)\.mlp\.(gate|up|down)\.", r"model.layers.\1.mlp.\2_proj."),
    (r"^norm\.", "model.norm."),
    (r"^head\.", "lm_head."),
)


def decoder_to_huggingface(
    state: Mapping[str, torch.Tensor], definition: SupernetDefinition
) -> dict[str, torch.Tensor]:
    """Convert our tensors to theirs, still under our names; `kv` becomes `k` and `v`."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if ".attn.kv." in name:
            for part, half in zip("kv", tensor.chunk(2), strict=True):
                converted[name.replace(".kv.", f".{part}.")] = half.clone()
        else:
            converted[name] = _reordered(name, tensor, definition, to_ranks=False)
    return converted


def decoder_from_huggingface(
    state: Mapping[str, torch.Tensor], definition: SupernetDefinition
) -> dict[str, torch.Tensor]:
    """Convert back what `decoder_to_huggingface` makes."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if ".attn.k." in name:
            value = state[name.replace(".k.", ".v.")]
            converted[name.replace(".k.", ".kv.")] = torch.cat([tensor, value])
        elif ".attn.v." not in name:
            converted[name] = _reordered(name, tensor, definition, to_ranks=True)
    return converted


def _reordered(
    name: str, tensor: torch.Tensor, definition: SupernetDefinition, *, to_ranks: bool
) -> torch.Tensor:
    """Rows of `q` and columns of `proj` from (groups, ranks, D) to (ranks, groups, D), or back."""
    config: Any = definition.config
    groups, head_dim = config.num_kv_heads, config.head_dim
    # A subnet may have fewer ranks than the config says; its groups are all there.
    heads = (groups, -1, head_dim) if to_ranks else (-1, groups, head_dim)
    if ".attn.q." in name:
        return tensor.unflatten(0, heads).transpose(0, 1).flatten(0, 2)
    if ".attn.proj." in name:
        return tensor.unflatten(1, heads).transpose(1, 2).flatten(1, 3)
    return tensor
