"""Decoders of others: Hugging Face folders both ways, GGUF files, and what is refused of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from serve.cli import build_app
from supernet import Checkpoint, define_supernet, extract, load_checkpoint
from supernet.text import TextSpec
from supernet.tokenizer import Tokenizer
from supernet.weights.gguf_tokenizer import text_of
from supernet.weights.huggingface_folder import read_text, write_folder
from supernet.weights.import_decoder import decoder_checkpoint, import_decoder, read_decoder
from supernet.weights.weight_files import WeightsError

tokenizers = pytest.importorskip("tokenizers")
CHAT = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}<s>assistant: "
IDS = torch.tensor([[5, 17, 90, 33, 2, 8]])


def byte_tokens() -> list[str]:
    """The 256 letters of byte-level tokenizers, and `th` as a merge."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return ["<s>", "</s>", *letters, "th"]


def text_spec() -> TextSpec:
    tokens = byte_tokens()
    encoder = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[("t", "h")])
    )
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    encoder.add_special_tokens(["<s>", "</s>"])
    return TextSpec(tokenizer=encoder.to_str(), chat_template=CHAT, bos_id=0, eos_ids=(1,))


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def ours(request: pytest.FixtureRequest) -> Checkpoint:
    """A random decoder of each architecture, with a tokenizer."""
    definition = define_supernet(
        "decoder_tiny",
        vocab_size=260,
        tied=request.param != "llama",
        qkv_bias=request.param == "qwen2",
        qk_norm=request.param == "qwen3",
    )
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(t.shape, generator=generator) * 0.3 + (t.dim() == 1)
        for name, t in definition.on_meta().state_dict().items()
    }
    return decoder_checkpoint(definition, state, [IDS], name="tiny", text=text_spec())


@torch.inference_mode()
def logits_of(checkpoint: Checkpoint, share: float = 1.0) -> torch.Tensor:
    definition = checkpoint.definition
    return extract(checkpoint.state, definition, definition.space.uniform(expand=share))(IDS)


def test_a_folder_of_a_width_comes_back_as_that_network(ours: Checkpoint, tmp_path: Path) -> None:
    for share, shard_bytes in ((1.0, 10**9), (0.5, 20_000)):
        folder = tmp_path / str(share)
        write_folder(
            ours, ours.definition.space.uniform(expand=share), folder, shard_bytes=shard_bytes
        )
        assert (len(list(folder.glob("*.safetensors"))) > 1) == (share < 1)
        read = read_decoder(folder, "huggingface")
        net = extract(read.state, read.definition, read.definition.space.largest)
        with torch.inference_mode():
            assert torch.equal(net(IDS), logits_of(ours, share))
        assert read.text == ours.text


def axes_decoder(**changed: Any) -> Checkpoint:
    """A random decoder that is elastic in heads and depth too, with a tokenizer."""
    values = {
        "vocab_size": 260, "num_heads": 6, "depth": 3, "heads_choices": (1, 3),
        "depth_choices": (2, 3), **changed,
    }  # fmt: skip
    definition = define_supernet("decoder_tiny", **values)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(t.shape, generator=generator) * 0.3 + (t.dim() == 1)
        for name, t in definition.on_meta().state_dict().items()
    }
    return decoder_checkpoint(definition, state, [IDS], name="tiny", text=text_spec())


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({}, "llama"),
        ({"windows": (3, 3, 3)}, "mistral"),
        ({"windows": (0, 3, 3), "qkv_bias": True}, "qwen2"),
        ({"windows": (3, 0, 3), "qk_norm": True}, "qwen3"),
    ],
)
def test_a_folder_of_fewer_heads_and_blocks_comes_back_as_that_network(
    changed: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    ours = axes_decoder(**changed)
    for i, arch in enumerate(
        (ours.definition.space.largest, ours.definition.space.uniform(heads=1, depth=2, expand=0.5))
    ):
        folder = tmp_path / str(i)
        write_folder(ours, arch, folder)
        assert json.loads((folder / "config.json").read_text())["model_type"] == kind
        read = read_decoder(folder, "huggingface")
        assert read.definition.config.num_heads == 2 * (3 if i == 0 else 1)  # type: ignore[attr-defined]
        net = extract(read.state, read.definition, read.definition.space.largest)
        own = extract(ours.state, ours.definition, arch)
        with torch.inference_mode():
            assert torch.equal(net(IDS), own(IDS))


def test_what_no_class_of_theirs_has_is_not_written(tmp_path: Path) -> None:
    for changed, message in (
        ({"windows": (0, 3, 3)}, "its blocks read all, 3, 3 tokens"),
        ({"windows": (2, 3, 3), "qk_norm": True}, "its blocks read 2, 3, 3 tokens"),
    ):
        ours = axes_decoder(**changed)
        with pytest.raises(ValueError, match=message):
            write_folder(ours, ours.definition.space.largest, tmp_path / "no")
    ours = axes_decoder()
    uneven = replace(ours.definition.space.largest, heads=(1, 3, 3))
    with pytest.raises(ValueError, match="its blocks have different numbers of heads"):
        write_folder(ours, uneven, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_further_axes_are_chosen_at_import(ours: Checkpoint, tmp_path: Path) -> None:
    write_folder(ours, ours.definition.space.largest, tmp_path / "folder")
    made = tmp_path / "made"
    arguments = ["import", str(tmp_path / "folder"), "--from", "huggingface", "--out", str(made)]
    refused = CliRunner().invoke(build_app(["import"]), [*arguments, "--elastic", "heads,rank"])
    assert refused.exit_code == 2
    assert "elastic axis 'rank', allowed heads, depth" in refused.stderr
    assert not made.exists()
    result = CliRunner().invoke(build_app(["import"]), [*arguments, "--elastic", "heads,depth"])
    assert result.exit_code == 0, result.output
    read = load_checkpoint(made)
    assert read.definition.space.heads == (1, 2)
    assert {subnet.arch.heads for subnet in read.subnets} == {(1, 1), (2, 2)}
    assert read.permutation is not None
    assert sorted(read.permutation["blocks.1.heads0"]) == [0, 1]
    torch.testing.assert_close(logits_of(read), logits_of(ours), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "gguf"], "is a folder; give the .gguf file, or for a folder --from hugging"),
        (["--from", "llama"], "--from is 'llama', allowed timm, torchvision, ofa, huggingface"),
        (["--from", "huggingface", "--calibration", "no.txt"], "no.txt: no such file"),
        (["--from", "huggingface", "--calibration", "bytes.txt"], "bytes.txt: not UTF-8 text"),
    ],
)
def test_a_wrong_source_or_text_is_one_sentence(
    ours: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    write_folder(ours, ours.definition.space.largest, tmp_path / "folder")
    given = ["import", "folder", *arguments, "--out", "made"]
    result = CliRunner().invoke(build_app(["import"]), given)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "made").exists()


def test_axes_of_decoders_are_refused_for_other_weights(tmp_path: Path) -> None:
    arguments = ["import", "resnet18", "--from", "timm", "--out", str(tmp_path / "made")]
    result = CliRunner().invoke(build_app(["import"]), [*arguments, "--elastic", "heads"])
    assert result.exit_code == 2
    assert "--elastic and --calibration go with the weights of a decoder" in result.stderr


def test_an_imported_decoder_is_sorted_measured_and_keeps_its_text(
    ours: Checkpoint, tmp_path: Path
) -> None:
    write_folder(ours, ours.definition.space.largest, tmp_path / "folder")
    made = tmp_path / "made"
    arguments = ["import", str(tmp_path / "folder"), "--from", "huggingface", "--out", str(made)]
    result = CliRunner().invoke(build_app(["import"]), arguments)
    assert result.exit_code == 0, result.output
    read = load_checkpoint(made)
    torch.testing.assert_close(logits_of(read), logits_of(ours), atol=1e-4, rtol=1e-4)
    assert read.permutation is not None
    assert sorted(read.permutation["blocks.0.hidden"]) == list(range(64))
    assert [s.arch.expand[0] for s in read.subnets] == [0.5, 0.75, 0.875, 1.0]
    accuracies = [subnet.accuracy for subnet in read.subnets]
    assert accuracies[-1] == 1.0
    assert max(accuracies[:-1]) < 1.0
    assert read.accuracy_source.startswith("top1_agreement")
    assert read.text == ours.text


def write_gguf(checkpoint: Checkpoint, path: Path, architecture: str, **changed: Any) -> None:
    """Write a decoder as llama.cpp's converter does: query and key in pairs for `llama`."""
    gguf = pytest.importorskip("gguf")
    config: Any = checkpoint.definition.config
    folder = path.with_suffix(".folder")
    write_folder(checkpoint, checkpoint.definition.space.largest, folder)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.depth)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(changed.get("heads", config.num_heads))
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_context_length(config.max_positions)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model(changed.get("model", "gpt2"))
    writer.add_tokenizer_pre(changed.get("pre", "gpt-2"))
    writer.add_token_list(byte_tokens())
    writer.add_token_types(changed.get("types", [3, 3] + [1] * (len(byte_tokens()) - 2)))
    writer.add_token_merges(changed.get("merges", ["t h"]))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT)
    names = {
        "model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "lm_head.": "output.",
        "model.layers.": "blk.", "input_layernorm": "attn_norm", "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    for name, tensor in load_file(folder / "model.safetensors").items():
        heads = config.num_heads if "q_proj" in name else config.num_kv_heads
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            halves = tensor.reshape(heads, 2, config.head_dim // 2, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        for theirs, short in names.items():
            name = name.replace(theirs, short)
        writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def architecture_of(checkpoint: Checkpoint) -> str:
    config: Any = checkpoint.definition.config
    return "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"


def test_a_gguf_file_is_the_same_network_and_tokenizer(ours: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(ours, path, architecture_of(ours))
    made = import_decoder(path, origin="gguf", sort=False)
    torch.testing.assert_close(logits_of(made), logits_of(ours), atol=1e-5, rtol=1e-5)
    config: Any = made.definition.config
    assert config.norm_eps == 1e-5  # not what its 32 bits are as a double
    assert made.text is not None
    assert (made.text.chat_template, made.text.bos_id, made.text.eos_ids) == (CHAT, 0, (1,))
    assert ours.text is not None
    for text in ("the other\n<s>é thé</s>", "", " 12 \U0001f600"):
        assert Tokenizer(made.text).encode(text) == Tokenizer(ours.text).encode(text)


@pytest.mark.parametrize(
    ("pre", "says", "begins"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("gpt-2", None, False),
     ("gpt-2", True, True)],
)  # fmt: skip
def test_a_gguf_text_begins_as_llamacpp_begins_it(
    pre: str, says: bool | None, begins: bool, tmp_path: Path
) -> None:
    """Files of Llama 3 that do not say so mean that a text begins with a token of its own."""
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": byte_tokens(),
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(byte_tokens()) - 2),
    }
    if says is not None:
        fields["tokenizer.ggml.add_bos_token"] = says
    ids = Tokenizer(text_of(tmp_path / "tiny.gguf", fields)).encode("the")
    assert (ids[0] == 0) == begins
    assert len(ids) == 2 + begins


def test_a_folder_that_can_not_be_written_is_told_before_the_work(
    ours: Checkpoint, tmp_path: Path
) -> None:
    write_folder(ours, ours.definition.space.largest, tmp_path / "folder")
    (tmp_path / "file").write_text("mine")
    source = ["import", str(tmp_path / "folder"), "--from", "huggingface", "--out"]
    for out in (tmp_path / "file", tmp_path / "file" / "made"):
        result = CliRunner().invoke(build_app(["import"]), [*source, str(out)])
        assert result.exit_code == 2
        assert "can't be written" in result.stderr
        assert str(out) in result.stderr
        assert "measuring" not in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine"
    absent = [*source, str(tmp_path / "far" / "off"), "--elastic", "rank"]
    assert CliRunner().invoke(build_app(["import"]), absent).exit_code == 2
    assert not (tmp_path / "far").exists()


@pytest.mark.parametrize("token", ["<s>", {"content": "<s>", "lstrip": False}, "absent", None])
def test_what_the_tokenizer_calls_its_end_ends_texts_too(
    ours: Checkpoint, tmp_path: Path, token: Any
) -> None:
    """As of chats that were fine-tuned from what ends texts otherwise."""
    write_folder(ours, ours.definition.space.largest, tmp_path / "folder")
    path = tmp_path / "folder" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": token}))
    ends = (1, 0) if token not in ("absent", None) else (1,)
    assert read_text(tmp_path / "folder").eos_ids == ends


def config_with(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gemma3"}, "model_type 'gemma3', supported are bert, llama"),
        (
            {"rope_parameters": {"rope_type": "llama3"}},
            "rope_type 'llama3', supported is 'default'",
        ),
        ({"rope_scaling": {"type": "yarn"}, "rope_parameters": None}, "rope_type 'yarn'"),
        ({"layer_types": ["sliding_attention"]}, "layer_types of 1 layers, supported are"),
        ({"layer_types": ["full_attention", "mamba"]}, "says layer_types mamba, supported are"),
        ({"layer_types": ["sliding_attention"] * 2}, "sliding windows, but no sliding_window"),
        ({"mlp_bias": True}, "says mlp_bias True"),
        ({"hidden_act": "gelu"}, "says hidden_act 'gelu', supported is 'silu'"),
        ({"hidden_size": "wide"}, "sizes of the network must be numbers"),
        ({"num_key_value_heads": 3}, "num_heads 4 must be a multiple of num_kv_heads 3"),
        ({"intermediate_size": 32}, "has shape"),
    ],
)
def test_a_folder_that_we_do_not_compute_is_refused(
    ours: Checkpoint, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    write_folder(ours, ours.definition.space.largest, tmp_path / "folder")
    config_with(tmp_path / "folder", **values)
    with pytest.raises(ValueError, match=message):
        import_decoder(tmp_path / "folder", origin="huggingface")


def test_a_folder_without_tokenizer_and_one_with_nan_are_refused_and_nothing_is_written(
    ours: Checkpoint, tmp_path: Path
) -> None:
    folder, made = tmp_path / "folder", tmp_path / "made"
    write_folder(ours, ours.definition.space.largest, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    broken = shutil.copytree(folder, tmp_path / "broken")
    save_file(tensors, broken / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    for source, message in (
        (folder, "tokenizer.json: no such file; a decoder needs its tokenizer"),
        (broken, "not finite in norm.weight (1 NaN"),
        (tmp_path / "absent.gguf", "no such file"),
        (Path(__file__), "not a whole GGUF file"),
    ):
        origin = "huggingface" if source.is_dir() else "gguf"
        arguments = ["import", str(source), "--from", origin, "--out", str(made)]
        result = CliRunner().invoke(build_app(["import"]), arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) <= 2  # what is being read, and the error
        assert not made.exists()


@pytest.mark.parametrize(
    ("architecture", "changed", "message"),
    [
        ("gemma3", {}, "its architecture is 'gemma3', supported are llama, qwen2, qwen3"),
        ("llama", {"model": "llama"}, "its tokenizer is 'llama'"),
        ("llama", {"pre": "tekken"}, "of kind 'tekken', supported is 'gpt2'"),
        ("llama", {"merges": ["zz yy"]}, "tiny.gguf: its tokenizer can't be made .*out of vocab"),
        ("llama", {"types": [3, 3]}, "tiny.gguf: its tokenizer can't be made"),
        ("llama", {"heads": 6}, "tiny.gguf: .*(q_proj.weight has shape|do not fit)"),
    ],
)
def test_a_gguf_of_another_kind_is_refused(
    ours: Checkpoint, tmp_path: Path, architecture: str, changed: dict[str, Any], message: str
) -> None:
    write_gguf(ours, tmp_path / "tiny.gguf", architecture, **changed)
    with pytest.raises(WeightsError, match=message):
        import_decoder(tmp_path / "tiny.gguf", origin="gguf")


def test_what_no_folder_can_hold_is_refused(
    ours: Checkpoint, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    space = ours.definition.space
    mixed = next(arch for arch in space.neighbours(space.largest))
    for source, arch, message in (
        (ours, mixed, "its blocks have different widths"),
        (checkpoint, checkpoint.subnets[0].arch, "a folder is for decoders"),
    ):
        with pytest.raises(ValueError, match=message):
            write_folder(source, arch, tmp_path / "folder")
        assert not (tmp_path / "folder").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="is there already"):
        write_folder(ours, space.largest, tmp_path / "there")
