"""Decoders: what they compute, by a plain reference written from the formulas and by transformers.

`transformers_logits.npz` and `transformers_windows.npz` hold what transformers 5.24.0 answered for
the same weights, which are made by a formula; slow tests ask it again where it is installed
(requirements-lm.txt).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from supernet import (
    Arch,
    Checkpoint,
    InputSpec,
    ServedSubnet,
    SupernetDefinition,
    cost,
    define_supernet,
    extract,
)
from supernet.layers.transformer import kept_blocks
from supernet.subnets.sort import importance_order, permute_channels, rms_activations
from supernet.weights.huggingface_folder import write_folder
from supernet.weights.naming import find_naming

FIXTURE = Path(__file__).with_name("transformers_logits.npz")
WINDOWS_FIXTURE = Path(__file__).with_name("transformers_windows.npz")
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tied": False},
    "llama_tied": {},
    "qwen2": {"qkv_bias": True, "tied": False},
    "qwen2_tied": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 12, "rope_theta": 1e6},
}
WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"windows": (3, 3)},
    "qwen2": {"qkv_bias": True, "windows": (0, 3)},
    "qwen3": {"qk_norm": True, "head_dim": 12, "windows": (3, 0)},
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
    theirs: dict[str, torch.Tensor],
    config: Any,
    ids: torch.Tensor,
    hidden: int,
    kept: Sequence[int] | None = None,
) -> torch.Tensor:
    """Logits (N, V) of one text by loops over heads, in double, from weights in their naming.

    `kept` are the blocks that a subnet's weights are of (default: all); heads are as many as there
    are rows for.
    """
    w = {name: tensor.double() for name, tensor in theirs.items()}
    D = config.head_dim

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * w[name]

    def turned(x: torch.Tensor) -> torch.Tensor:  # (N, D): pairs (i, i + D / 2) as complex numbers
        position = torch.arange(len(x)).double()[:, None]
        speed = config.rope_theta ** (-2 * torch.arange(D // 2).double() / D)
        turn = torch.polar(torch.ones(len(x), D // 2).double(), position * speed)
        pairs = torch.complex(x[:, : D // 2], x[:, D // 2 :]) * turn
        return torch.cat([pairs.real, pairs.imag], -1)

    x = w["model.embed_tokens.weight"][ids]
    distance = torch.arange(len(ids))[:, None] - torch.arange(len(ids))
    for place, block in enumerate(range(config.depth) if kept is None else kept):
        layer = f"model.layers.{place}"
        visible = (distance >= 0) & (distance < (config.window(block) or len(ids)))
        a = f"{layer}.self_attn"
        R = len(w[f"{a}.q_proj.weight"]) // D // config.num_kv_heads
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
            for h in range(len(q))
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


ALL_AXES: dict[str, Any] = {
    "num_heads": 6,
    "depth": 4,
    "heads_choices": (1, 2, 3),
    "depth_choices": (2, 3, 4),
    "windows": (0, 3, 5, 0),
}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@torch.inference_mode()
def test_heads_depth_and_windows_compute_the_formulas(kind: str) -> None:
    """Of subnets drawn at random, whose blocks keep different heads and widths."""
    definition = define_supernet("decoder_tiny", **{**KINDS[kind], **ALL_AXES})
    state, rng = formula_state(definition), np.random.default_rng(0)
    config: Any = definition.config
    answered: list[torch.Tensor] = []
    for arch in [definition.space.largest, *(definition.space.sample(rng) for _ in range(6))]:
        net = extract(state, definition, arch).double()
        theirs = in_their_names(net.state_dict(), definition)
        kept = kept_blocks(config.depth, arch.depth[0])
        for ids in IDS:
            logits = net(ids[None])[0]
            expected = reference_logits(theirs, config, ids, config.hidden, kept)
            scale = expected.abs().max().item()
            torch.testing.assert_close(logits, expected, atol=1e-6 * scale, rtol=0)
            answered.append(logits)
    assert len({round(float(logits.sum()), 3) for logits in answered}) == len(answered)


def windowed(kind: str, arch_values: dict[str, Any]) -> tuple[Checkpoint, Arch]:
    """A decoder with windows, whose weights depend on no generator, and a subnet of it."""
    values = {**WINDOWS[kind], "num_heads": 6, "heads_choices": (1, 3), "depth_choices": (1, 2)}
    definition = define_supernet("decoder_tiny", **values)
    arch = definition.space.uniform(**arch_values)
    largest = definition.space.largest
    checkpoint = Checkpoint(
        name=kind,
        definition=definition,
        input=InputSpec(channels=1, height=1, width=16, mean=(0.0,), std=(1.0,), kind="tokens"),
        state=formula_state(definition),
        norm_statistics={largest.subnet_id: {}},
        subnets=(
            ServedSubnet(
                arch=largest,
                accuracy=1.0,
                ci95=(1.0, 1.0),
                **cost(definition, largest)._asdict(),
            ),
        ),
    )
    return checkpoint, arch


SUBNETS: dict[str, dict[str, Any]] = {
    "whole": {},
    "one_head": {"heads": 1, "expand": 0.5},
    "one_block": {"depth": 1},
}


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("subnet", SUBNETS)
@torch.inference_mode()
def test_windows_and_heads_are_what_transformers_computes(kind: str, subnet: str) -> None:
    checkpoint, arch = windowed(kind, SUBNETS[subnet])
    logits = extract(checkpoint.state, checkpoint.definition, arch)(IDS)
    with np.load(WINDOWS_FIXTURE) as answered:
        told = torch.from_numpy(answered[f"{kind}/{subnet}"])
    torch.testing.assert_close(logits, told, atol=1e-5 * told.abs().max().item(), rtol=0)


@pytest.mark.slow
def test_transformers_loads_what_is_written_and_still_answers_so(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    answers = {}
    for kind in WINDOWS:
        for subnet, values in SUBNETS.items():
            checkpoint, arch = windowed(kind, values)
            folder = tmp_path / kind / subnet
            write_folder(checkpoint, arch, folder)
            net = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
            assert type(net).__name__ == f"{kind.capitalize()}ForCausalLM"
            with torch.inference_mode():
                answers[f"{kind}/{subnet}"] = net(IDS).logits.numpy()
    if not WINDOWS_FIXTURE.exists():
        np.savez_compressed(WINDOWS_FIXTURE, **answers)
    with np.load(WINDOWS_FIXTURE) as answered:
        assert set(answered.files) == set(answers)
        for name, logits in answers.items():
            np.testing.assert_allclose(answered[name], logits, atol=1e-5 * np.abs(logits).max())


@torch.inference_mode()
def test_the_loudest_head_of_each_group_comes_first() -> None:
    definition = define_supernet("decoder_tiny", **{**KINDS["qwen2"], **ALL_AXES, "windows": ()})
    config: Any = definition.config
    groups = definition.family.channel_groups(config)
    state = formula_state(definition)
    heads = state["blocks.1.attn.proj.weight"].unflatten(1, (config.num_heads, -1))
    heads[:, 2 * config.num_kv_heads + 1] *= 50  # rank 2 of group 1
    whole = extract(state, definition, definition.space.largest)
    expected = whole(IDS)
    order = importance_order(state, groups, rms_activations(whole, groups, [IDS]))
    assert order["blocks.1.heads1"][0] == 2
    assert order["blocks.1.heads0"] != order["blocks.1.heads1"]
    narrow = definition.space.uniform(heads=1)
    unsorted = (extract(state, definition, narrow)(IDS) - expected).norm()
    permute_channels(state, groups, order)
    found = extract(state, definition, definition.space.largest)(IDS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (extract(state, definition, narrow)(IDS) - expected).norm() < 0.75 * unsorted


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
        (
            {"heads_choices": (1, 4)},
            r"heads_choices is \(1, 4\); allowed 1 or more, and the last 2",
        ),
        (
            {"depth_choices": (0, 2)},
            r"depth_choices is \(0, 2\); allowed 1 or more, and the last 2",
        ),
        ({"windows": (4,)}, "windows is .*; allowed one for each of the 2 blocks"),
        ({"windows": (4, -1)}, "windows is .*; allowed one for each of the 2 blocks"),
    ],
)
def test_a_config_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        define_supernet("decoder_tiny", **values)
