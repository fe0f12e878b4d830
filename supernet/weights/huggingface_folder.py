"""Decoders as Hugging Face-format folders: the text that belongs to the weights, and writing one.

A folder holds `config.json`, safetensors (in several files with an index where they are large),
`tokenizer.json`, and the chat template in `chat_template.jinja` or `tokenizer_config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from supernet.arch import Arch
from supernet.checkpoint import Checkpoint
from supernet.families.decoder import heads_per_group, hidden_units
from supernet.layers.transformer import kept_blocks
from supernet.tensor_file import save_tensors
from supernet.text import TextSpec
from supernet.weights.export_weights import ExportError, origin_state
from supernet.weights.weight_files import WeightsError, read_config, read_json

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_SHARD_BYTES = 4 * 2**30


def read_text(folder: str | Path) -> TextSpec:
    """Return the text of a decoder's folder. Raises WeightsError: no tokenizer, malformed files."""
    source = Path(folder)
    path = source / "tokenizer.json"
    try:
        tokenizer = _text_of(path)
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(
            f"{path}: no such file; a decoder needs its tokenizer, so copy tokenizer.json of the "
            "same model into the folder"
        ) from None
    ids = {**read_config(source), **_optional_json(source / "generation_config.json")}
    ends = ids.get("eos_token_id")
    try:
        text = TextSpec(
            tokenizer=tokenizer,
            chat_template=_chat_template(source),
            bos_id=ids.get("bos_token_id"),
            eos_ids=() if ends is None else tuple(ends) if isinstance(ends, list) else (ends,),
        )
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    return replace(text, eos_ids=tuple(dict.fromkeys((*text.eos_ids, *_own_ends(source, text)))))


def write_folder(
    checkpoint: Checkpoint, arch: Arch, folder: str | Path, *, shard_bytes: int = _SHARD_BYTES
) -> None:
    """Write one subnet as a folder that `transformers` loads; whole or not at all.

    Raises ExportError for another family than the decoders, widths or heads that differ between
    blocks (their config has one number), windows that no class of theirs has, or a folder that is
    there already.
    """
    definition, target = checkpoint.definition, Path(folder)
    if not definition.family.generates:
        raise ExportError(
            f"{definition.family_name} is written as a state_dict: --format state_dict "
            "--naming huggingface; a folder is for decoders"
        )
    if target.exists():
        raise ExportError(f"{target}: is there already; give the name of a new folder")
    for what, entries in (("widths", arch.expand), ("numbers of heads", arch.heads)):
        if len(set(entries)) > 1:
            raise ExportError(
                f"{arch.subnet_id}: its blocks have different {what}, and a Hugging Face config "
                "has one for all; choose a uniform arch"
            )
    state = origin_state(checkpoint.state, definition, arch, "huggingface")
    config = _config(definition.config, arch, checkpoint.text)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        whole = Path(temporary) / "folder"
        whole.mkdir()
        _write_json(whole / "config.json", config)
        _write_text(whole, checkpoint.text)
        _write_shards(whole, state, shard_bytes)
        whole.rename(target)


def _config(ours: Any, arch: Arch, text: TextSpec | None) -> dict[str, Any]:
    if ours.qk_norm and ours.qkv_bias:
        raise ExportError("a decoder with qk_norm and qkv_bias has no Hugging Face class")
    kept = kept_blocks(ours.depth, arch.depth[0])
    windows = [ours.window(i) for i in kept]
    kind = "qwen3" if ours.qk_norm else "qwen2" if ours.qkv_bias else "llama"
    if kind == "llama" and any(windows):
        kind = "mistral"
    ends = list(text.eos_ids) if text else []
    return {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": ours.vocab_size,
        "hidden_size": ours.width,
        "intermediate_size": hidden_units(ours, arch.expand[0]),
        "num_hidden_layers": len(kept),
        "num_attention_heads": heads_per_group(ours, arch)[0] * ours.num_kv_heads,
        "num_key_value_heads": ours.num_kv_heads,
        "head_dim": ours.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": ours.max_positions,
        "rms_norm_eps": ours.norm_eps,
        # Newer versions of transformers read the first, older ones the second.
        "rope_parameters": {"rope_type": "default", "rope_theta": ours.rope_theta},
        "rope_theta": ours.rope_theta,
        "tie_word_embeddings": ours.tied,
        "bos_token_id": text.bos_id if text else None,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "dtype": "float32",
        **_windows_config(kind, windows),
    }


def _windows_config(kind: str, windows: list[int]) -> dict[str, Any]:
    """The windows as their config says them."""
    sizes = {window for window in windows if window}
    if not sizes:
        return {}
    if len(sizes) > 1 or (kind == "mistral" and 0 in windows):
        raise ExportError(
            f"its blocks read {', '.join(str(w or 'all') for w in windows)} tokens; a Hugging Face "
            "config has one window for all, or (Qwen) one window and layers that read all"
        )
    if kind == "mistral":
        return {"sliding_window": sizes.pop()}
    types = ["sliding_attention" if window else "full_attention" for window in windows]
    return {
        "use_sliding_window": True,
        "sliding_window": sizes.pop(),
        "max_window_layers": types.index("sliding_attention"),  # who reads no layer_types
        "layer_types": types,
    }


def _write_text(folder: Path, text: TextSpec | None) -> None:
    if text is None:
        return
    (folder / "tokenizer.json").write_text(text.tokenizer, encoding="utf-8")
    if text.chat_template:
        (folder / "chat_template.jinja").write_text(text.chat_template, encoding="utf-8")
    tokens = {t["id"]: t["content"] for t in json.loads(text.tokenizer).get("added_tokens", ())}
    named = {"bos_token": text.bos_id, "eos_token": next(iter(text.eos_ids), None)}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: tokens[i] for name, i in named.items() if i in tokens},
        },
    )


def _write_shards(folder: Path, state: Mapping[str, torch.Tensor], shard_bytes: int) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}]
    held = 0
    for name, tensor in state.items():
        if shards[-1] and held + tensor.nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor.contiguous()
        held += tensor.nbytes
    metadata = {"format": "pt"}
    if len(shards) == 1:
        save_tensors(shards[0], folder / "model.safetensors", metadata)
        return
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_tensors(shard, folder / file, metadata)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _chat_template(source: Path) -> str:
    path = source / "chat_template.jinja"
    if path.is_file():
        return _text_of(path)
    template = _optional_json(source / "tokenizer_config.json").get("chat_template") or ""
    if isinstance(template, list):  # several by name
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default", "")
    return template


def _own_ends(source: Path, text: TextSpec) -> list[int]:
    """Return the id of what the tokenizer calls its end, which chats end by.

    The network's config often still lists the end of what it was fine-tuned from alone.
    """
    token = _optional_json(source / "tokenizer_config.json").get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    added = json.loads(text.tokenizer).get("added_tokens") or ()
    return [each["id"] for each in added if each["content"] == content]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path}: not UTF-8 text ({error})") from None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path, "") if path.is_file() else {}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
