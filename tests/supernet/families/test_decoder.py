"""Decoders: what they compute, by a plain reference written from the formulas and by transformers.

`transformers_logits.npz` holds what transformers 5.24.0 answered for the same weights, which are
made by a formula; the slow test asks it again where it is installed (requirements-lm.txt).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from supernet import SupernetDefinition, define_supernet, extract
from supernet.subnets.sort import importance_order, permute_channels, rms_activations
from supernet.weights.naming import find_naming

FIXTURE = Path(__file__).with_name("transformers_logits.npz")
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tied": False},
    "llama_tied": {},
    "qwen2": {"qkv_bias": True, "tied": False},
    "qwen2_tied": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 12, "rope_theta": 1e6},
}
IDS = torch.tensor([[1, 5, 9, 127, 64, 3, 3, 77], list(range(40, 48))])


def definition_of(kind: str) -> SupernetDefinition:
    return define_supernet("decoder_tiny", **KINDS[kind])


def formula_state(definition: SupernetDefinition) -> dict[str, torch.Tensor]:
    """Weights of our names that depend on no random generator's version."""
    state = {}
    for i, (name, tensor) in enumerate(sorted(definition.on_meta().state_dict().items())):
        steps = np.arange(tensor.numel(), dtype=np.float64)
        values = np.sin(steps * 12.9898 + i * 78.233) * 0.35
        if tensor.dim() == 1 and "norm" in name:
            values = 1.0 + values
        state[name] = torch.from_numpy(values).float().reshape(tensor.shape)
    return state


def reference_logits(
    theirs: dict[str, torch.Tensor], config: Any, ids: torch.Tensor, hidden: int
) -> torch.Tensor:
    """Logits (N, V) of one text by loops over heads, in double, from weights in their naming."""
    w = {name: tensor.double() for name, tensor in theirs.items()}
    D, R = config.head_dim, config.num_heads // config.num_kv_heads

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * w[name]

    def turned(x: torch.Tensor) -> torch.Tensor:  # (N, D): pairs (i, i + D / 2) as complex numbers
        position = torch.arange(len(x)).double()[:, None]
        speed = config.rope_theta ** (-2 * torch.arange(D // 2).double() / D)
        turn = torch.polar(torch.ones(len(x), D // 2).double(), position * speed)
        pairs = torch.complex(x[:, : D // 2], x[:, D // 2 :]) * turn
        return torch.cat([pairs.real, pairs.imag], -1)

    x = w["model.embed_tokens.weight"][ids]
    visible = torch.ones(len(ids), len(ids)).tril().bool()
    for layer in (f"model.layers.{i}" for i in range(config.depth)):
        a = f"{layer}.self_attn"
        y = norm(x, f"{layer}.input_layernorm.weight")

        def heads(y: torch.Tensor, part: str, a: str = a) -> list[torch.Tensor]:
            out = y @ w[f"{a}.{part}_proj.weight"].T
            if config.qkv_bias:
                out = out + w[f"{a}.{part}_proj.bias"]
            parts = list(out.split(D, -1))
            if config.qk_norm and part != "v":
                parts = [norm(p, f"{a}.{part}_norm.weight") for p in parts]
            return parts if part == "v" else [turned(p) for p in parts]

        q, k, v = heads(y, "q"), heads(y, "k"), heads(y, "v")
        mixed = [
            (q[h] @ k[h // R].T / D**0.5).masked_fill(~visible, -torch.inf).softmax(-1) @ v[h // R]
            for h in range(config.num_heads)
        ]
        x = x + torch.cat(mixed, -1) @ w[f"{a}.o_proj.weight"].T
        y = norm(x, f"{layer}.post_attention_layernorm.weight")
        gate = y @ w[f"{layer}.mlp.gate_proj.weight"][:hidden].T
        up = y @ w[f"{layer}.mlp.up_proj.weight"][:hidden].T
        x = x + (gate * gate.sigmoid() * up) @ w[f"{layer}.mlp.down_proj.weight"][:, :hidden].T
    x = norm(x, "model.norm.weight")
    return x @ w["model.embed_tokens.weight" if config.tied else "lm_head.weight"].T


def in_their_names(state: dict[str, torch.Tensor], definition: SupernetDefinition) -> Any:
    return find_naming("huggingface", "decoder").to_origin(state, definition)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_width_computes_the_formulas_and_what_transformers_does(kind: str) -> None:
    definition = definition_of(kind)
    config: Any = definition.config
    state = formula_state(definition)
    theirs = in_their_names(state, definition)
    with np.load(FIXTURE) as answered:
        told = {name: torch.from_numpy(answered[name]) for name in answered.files}
    for share in config.expand_choices:
        logits = extract(state, definition, definition.space.uniform(expand=share))(IDS)
        scale = logits.abs().max().item()
        assert scale > 0.5
        torch.testing.assert_close(logits, told[f"{kind}/{share}"], atol=1e-5 * scale, rtol=0)
        for row, ids in zip(logits, IDS, strict=True):
            expected = reference_logits(theirs, config, ids, int(config.hidden * share))
            torch.testing.assert_close(row.double(), expected, atol=1e-5 * scale, rtol=0)


@pytest.mark.slow
def test_transformers_still_answers_so() -> None:
    transformers = pytest.importorskip("transformers")
    answers = {}
    for kind in KINDS:
        definition = definition_of(kind)
        state = formula_state(definition)
        config: Any = definition.config
        for share in config.expand_choices:
            arch = definition.space.uniform(expand=share)
            theirs = in_their_names(extract(state, definition, arch).state_dict(), definition)
            named = kind.split("_")[0].capitalize()
            net = getattr(transformers, f"{named}ForCausalLM")(
                getattr(transformers, f"{named}Config")(
                    vocab_size=config.vocab_size,
                    hidden_size=config.width,
                    intermediate_size=int(config.hidden * share),
                    num_hidden_layers=config.depth,
                    num_attention_heads=config.num_heads,
                    num_key_value_heads=config.num_kv_heads,
                    head_dim=config.head_dim,
                    rms_norm_eps=config.norm_eps,
                    max_position_embeddings=config.max_positions,
                    rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                    tie_word_embeddings=config.tied,
                    bos_token_id=0,
                    eos_token_id=0,
                    pad_token_id=None,
                )
            )
            missing, unexpected = net.load_state_dict(theirs, strict=False)
            assert not unexpected
            assert set(missing) <= ({"lm_head.weight"} if config.tied else set())
            with torch.inference_mode():
                answers[f"{kind}/{share}"] = net.eval()(IDS).logits.numpy()
    if not FIXTURE.exists():
        np.savez_compressed(FIXTURE, **answers)
    with np.load(FIXTURE) as answered:
        assert set(answered.files) == set(answers)
        for name, logits in answers.items():
            np.testing.assert_allclose(answered[name], logits, atol=1e-5 * np.abs(logits).max())


@torch.inference_mode()
def test_earlier_keys_and_values_do_not_depend_on_later_widths() -> None:
    definition = definition_of("qwen2")
    state = formula_state(definition)
    seen: list[torch.Tensor] = []
    for share in (1.0, 0.25):
        net = extract(state, definition, definition.space.uniform(expand=share))
        net.get_submodule("blocks.0.attn.kv").register_forward_hook(
            lambda _m, _i, output: seen.append(output)
        )
        net(IDS)
    assert torch.equal(*seen)


@torch.inference_mode()
def test_loud_units_behind_small_weights_are_kept() -> None:
    """The unit that bears the network has the smallest column: weights alone drop it first."""
    definition = definition_of("llama_tied")
    groups = definition.family.channel_groups(definition.config)
    state = formula_state(definition)
    state["blocks.0.mlp.up.weight"][40] *= 1000
    state["blocks.0.mlp.down.weight"][:, 40] *= 0.05
    whole = extract(state, definition, definition.space.largest)
    order = importance_order(state, groups, rms_activations(whole, groups, [IDS]))
    assert order["blocks.0.hidden"][0] == 40
    assert state["blocks.0.mlp.down.weight"].abs().sum(0).argmin() == 40
    expected = whole(IDS)
    permute_channels(state, groups, order)
    narrow = definition.space.smallest
    kept = (extract(state, definition, narrow)(IDS) - expected).norm()
    lost = (extract(formula_state(definition), definition, narrow)(IDS) - expected).norm()
    assert kept < 0.75 * lost


def test_weights_alone_are_refused_for_gated_feed_forwards() -> None:
    definition = definition_of("llama_tied")
    groups = definition.family.channel_groups(definition.config)
    with pytest.raises(ValueError, match=r"blocks\.0\.hidden can't be sorted by its weights"):
        importance_order(formula_state(definition), groups)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads 4 must be a multiple of num_kv_heads 3"),
        ({"expand_choices": (0.5, 0.9, 1.0)}, "a share of hidden 64 that is a whole number"),
        ({"expand_choices": (0.5,)}, "the last must be 1"),
        ({"num_tokens": 512}, "allowed up to max_positions 256"),
        ({"width": 0}, "width is 0, allowed 1 or more"),
    ],
)
def test_a_config_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        define_supernet("decoder_tiny", **values)
