"""Queries, keys and values of an iteration's rows, turned by position.

On one worker and on several alike.

`T` rows, `angles` their cosines and signed sines (T, 1, D), as `turn` takes them (rotary.py).
"""

from __future__ import annotations

from typing import Any

import torch

from subnetact.decoding.decoder_weights import Layer, SkippedLayer
from subnetact.decoding.rotary import turn
from supernet.layers.causal import Angles


def project(
    config: Any, layer: Layer, y: torch.Tensor, angles: Angles
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries (T, ranks, groups, D), keys and values (T, groups, D) of normed rows (T, C).

    `config` is the decoder's.
    """
    heads = layer.heads
    groups, asking = config.num_kv_heads, heads.ranks * config.num_kv_heads
    whole = heads.q_kv(y).unflatten(1, (-1, config.head_dim))  # (T, (ranks + 2) * groups, D)
    turned = whole.narrow(1, 0, asking + groups)  # queries and keys, which are turned alike
    if layer.q_norm is not None:
        query, key = turned.split((asking, groups), 1)
        query = torch.rms_norm(query, (config.head_dim,), layer.q_norm, config.norm_eps)
        key = torch.rms_norm(key, (config.head_dim,), layer.k_norm, config.norm_eps)
        turned = torch.cat((query, key), 1)
    query, key = turn(turned, *angles).split((asking, groups), 1)
    return query.unflatten(1, (-1, groups)), key, whole.narrow(1, asking + groups, groups)


def project_passing(
    config: Any, layer: SkippedLayer, y: torch.Tensor, angles: Angles
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values (T, groups, D) that a block would have made of rows passing it."""
    key, value = layer.kv(y).unflatten(1, (2, -1, config.head_dim)).unbind(1)
    if layer.k_norm is not None:
        key = torch.rms_norm(key, (config.head_dim,), layer.k_norm, config.norm_eps)
    return turn(key, *angles), value
