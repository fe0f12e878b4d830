"""Reading our config's fields from the `config.json` of a Hugging Face-format folder.

What a network computes is said by the config, not by the tensors: whatever we do not compute
(scaled rotary positions, other activations) is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supernet.weights.weight_files import WeightsError, read_config

_NUM_TOKENS = 128  # at which texts are counted
_DECODERS = ("llama", "mistral", "qwen2", "qwen3")
_SHARES = (0.5, 0.75, 0.875, 1.0)


def read_network_config(folder: str | Path) -> tuple[str, dict[str, Any]]:
    """Return the family that a folder's network belongs to, and the fields of its config.

    Raises WeightsError: no config, an architecture or a setting that is not supported, a field
    that is missing or no number.
    """
    config = read_config(folder)
    kind = config.get("model_type")
    if kind not in ("bert", *_DECODERS):
        raise WeightsError(
            f"{folder}: config.json says model_type {kind!r}, "
            f"supported are bert, {', '.join(_DECODERS)}"
        )
    where = f"{folder}: config.json"
    try:
        if kind == "bert":
            return "bert", _bert_fields(config, where)
        return "decoder", decoder_fields(config, where)
    except KeyError as error:
        raise WeightsError(f"{where} lacks {error.args[0]}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{where}: sizes of the network must be numbers above 0 ({error})"
        ) from None


def decoder_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the fields of a `DecoderConfig` for a Hugging Face config of a decoder.

    Raises WeightsError for a setting that is not supported, KeyError, TypeError and ValueError for
    fields that are missing or no numbers.
    """
    kind = config["model_type"]
    rope: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    _check(where, "hidden_act", config.get("hidden_act", "silu"), "silu")
    _check(where, "rope_type", rope_type, "default")
    _check(where, "mlp_bias", bool(config.get("mlp_bias")), False)
    if kind != "qwen2":  # whose biases are of query, key and value only, and always there
        _check(where, "attention_bias", bool(config.get("attention_bias")), False)
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    hidden, positions = int(config["intermediate_size"]), int(config["max_position_embeddings"])
    return {
        "vocab_size": int(config["vocab_size"]),
        "width": width,
        "depth": int(config["num_hidden_layers"]),
        "num_heads": heads,
        "num_kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or width // heads),
        "hidden": hidden,
        "max_positions": positions,
        "num_tokens": min(_NUM_TOKENS, positions),
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        "norm_eps": float(config["rms_norm_eps"]),
        "tied": bool(config.get("tie_word_embeddings", False)),
        "qkv_bias": kind == "qwen2",
        "qk_norm": kind == "qwen3",
        "expand_choices": tuple(s for s in _SHARES if (hidden * s).is_integer()),
        "windows": _windows(config, where),
    }


def _windows(config: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """How many tokens each block reads (0: all), or nothing where all blocks read all.

    By `layer_types` where they are given; else every block of a Mistral has the window, and of a
    Qwen the blocks from `max_window_layers` on, if it says `use_sliding_window`. A window as long
    as the context is none.
    """
    kind, depth = config["model_type"], int(config["num_hidden_layers"])
    window = int(config.get("sliding_window") or 0)
    types = config.get("layer_types")
    if types is not None:
        unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
        if unknown or len(types) != depth:
            raise WeightsError(
                f"{where} says layer_types {', '.join(unknown) or f'of {len(types)} layers'}, "
                f"supported are full_attention and sliding_attention, one for each of {depth}"
            )
        slides = [each == "sliding_attention" for each in types]
    elif kind == "mistral":
        slides = [window > 0] * depth
    elif config.get("use_sliding_window"):
        first = int(config.get("max_window_layers") or 0)
        slides = [i >= first for i in range(depth)]
    else:
        slides = [False] * depth
    if any(slides) and window < 1:
        raise WeightsError(f"{where} has layers with sliding windows, but no sliding_window")
    if not any(slides) or window >= int(config["max_position_embeddings"]):
        return ()
    return tuple(window if each else 0 for each in slides)


def _bert_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    _check(where, "hidden_act", config.get("hidden_act"), "gelu")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise WeightsError(f"{where}: only absolute position embeddings are supported")
    width, heads, depth = (
        int(config[name]) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    ratio = config["intermediate_size"] / width
    return {
        "vocab_size": config["vocab_size"],
        "max_positions": config["max_position_embeddings"],
        "num_tokens": min(_NUM_TOKENS, config["max_position_embeddings"]),
        "num_token_types": config["type_vocab_size"],
        "pad_id": config.get("pad_token_id") or 0,
        "width": width,
        "depth": depth,
        "num_heads": heads,
        "ln_eps": float(config["layer_norm_eps"]),
        "depth_choices": tuple(range((depth + 1) // 2, depth + 1)),
        "heads_choices": tuple(sorted({max(1, heads * q // 4) for q in range(1, 5)})),
        "expand_choices": tuple(sorted({ratio * q / 4 for q in range(1, 5)})),
    }


def _check(where: str, name: str, given: object, supported: object) -> None:
    if given != supported:
        raise WeightsError(f"{where} says {name} {given!r}, supported is {supported!r}")
