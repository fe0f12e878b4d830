"""Reading a decoder from a GGUF file, the format of llama.cpp (extra `lm`).

Whatever precision its tensors have, they are expanded to float32 once, here. Files of the
architecture `llama` hold the rows of query and key in another order, for rotary positions that turn
neighbouring entries (2 i, 2 i + 1) instead of halves: that is undone. The tokenizer is in the file
as a list of tokens and merges, of which a `tokenizer.json` is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from supernet.text import TextSpec
from supernet.weights.gguf_tokenizer import text_of
from supernet.weights.huggingface_config import decoder_fields
from supernet.weights.weight_files import WeightsError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_NAMES = (
    (r"^token_embd\.", "model.embed_tokens."),
    (r"^output_norm\.", "model.norm."),
    (r"^output\.", "lm_head."),
    (r"^blk\.(\d+)\.attn_norm\.", r"model.layers.\1.input_layernorm."),
    (r"^blk\.(\d+)\.ffn_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"^blk\.(\d+)\.attn_([qk])_norm\.", r"model.layers.\1.self_attn.\2_norm."),
    (r"^blk\.(\d+)\.attn_([qkv])\.", r"model.layers.\1.self_attn.\2_proj."),
    (r"^blk\.(\d+)\.attn_output\.", r"model.layers.\1.self_attn.o_proj."),
    (r"^blk\.(\d+)\.ffn_(gate|up|down)\.", r"model.layers.\1.mlp.\2_proj."),
)


class GgufNetwork(NamedTuple):
    """What a file holds: fields of a `DecoderConfig`, tensors as Hugging Face names them, text."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    text: TextSpec


def read_gguf(path: str | Path) -> GgufNetwork:
    """Read a whole file. Takes seconds: token lists of 50,000 entries are parsed one by one.

    Raises WeightsError: no such file, no whole GGUF file, an architecture, a setting, a
    quantisation or a tokenizer that is not supported, or the `gguf` package missing.
    """
    source = Path(path)
    reader = _open(source)
    fields = _Fields(source, reader.fields)
    architecture = str(fields["general.architecture"])
    if architecture not in ARCHITECTURES:
        raise WeightsError(
            f"{source}: its architecture is {architecture!r}, "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    tensors = _tensors(source, reader)
    config = _config(source, architecture, fields, tensors)
    if architecture == "llama":
        _restore_halves(tensors, config)
    name = str(fields.get("general.name", source.stem))
    return GgufNetwork(name, config, tensors, text_of(source, fields))


class _Fields(Mapping[str, Any]):
    """Metadata by key as plain values; a key that must be there raises WeightsError."""

    def __init__(self, source: Path, fields: Mapping[str, Any]):
        self._source, self._fields = source, fields

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise WeightsError(f"{self._source}: its metadata lacks {key}")
        field = self._fields[key]
        kind = field.types[-1].name
        convert: Callable[[Any], Any] = _text if kind == "STRING" else _number
        values = [convert(field.parts[index]) for index in field.data]
        return values if field.types[0].name == "ARRAY" else values[0]

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self._fields else default

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def __iter__(self):
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def _text(part: Any) -> str:
    return bytes(part).decode("utf-8", errors="replace")


def _number(part: Any) -> int | float | bool:
    """Return a number; of 32 bits as it was written: 1e-5, not the double nearest to its bits."""
    return float(str(part[0])) if part.dtype.kind == "f" else part[0].item()


def _open(source: Path) -> Any:
    if source.is_dir():
        raise WeightsError(
            f"{source}: is a folder; give the .gguf file, or for a folder --from huggingface"
        )
    if not source.is_file():
        raise WeightsError(f"{source}: no such file")
    try:
        package = import_module("gguf")
    except ImportError:
        raise WeightsError(
            f"{source}: GGUF needs the gguf package: pip install 'supernet-serving[lm]'"
        ) from None
    try:
        return package.GGUFReader(str(source))
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise WeightsError(f"{source}: not a whole GGUF file ({error})") from None


def _tensors(source: Path, reader: Any) -> dict[str, torch.Tensor]:
    quants = import_module("gguf.quants")
    tensors: dict[str, torch.Tensor] = {}
    for entry in reader.tensors:
        name = entry.name
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        try:
            values = quants.dequantize(entry.data, entry.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise WeightsError(f"{source}: {entry.name} can't be expanded ({error})") from None
        tensors[name] = torch.from_numpy(values.astype("float32"))
    return tensors


def _config(
    source: Path, architecture: str, fields: _Fields, tensors: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The fields as a Hugging Face config would say them, so that one place judges both."""
    if "rope_freqs.weight" in tensors or (
        fields.get(f"{architecture}.rope.scaling.type", "none") != "none"
    ):
        raise WeightsError(f"{source}: scaled rotary positions are not supported")
    table = tensors.get("model.embed_tokens.weight")
    if table is None:
        raise WeightsError(f"{source}: holds no token_embd.weight")

    def of(key: str, default: Any = None) -> Any:
        key = f"{architecture}.{key}"
        return fields[key] if default is None else fields.get(key, default)

    heads = int(of("attention.head_count"))
    width = int(of("embedding_length"))
    config = {
        "model_type": architecture,
        "vocab_size": len(table),
        "hidden_size": width,
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": of("attention.head_count_kv", heads),
        "head_dim": of("attention.key_length", width // heads),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    try:
        return decoder_fields(config, f"{source}: metadata")
    except (TypeError, ArithmeticError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{source}: sizes in its metadata are no numbers ({error})") from None


def _restore_halves(tensors: dict[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    """Put the rows of query and key from neighbouring pairs back into halves, head by head."""
    heads = {"q_proj": config["num_heads"], "k_proj": config["num_kv_heads"]}
    for name, tensor in tensors.items():
        count = heads.get(name.split(".")[-2]) if "." in name else None
        # One of other sizes than the metadata says stays as it is: its shape is refused later.
        if count is not None and len(tensor) % (2 * count) == 0:
            pairs = tensor.unflatten(0, (count, -1, 2))  # (heads, D / 2, 2, ...)
            tensors[name] = pairs.transpose(1, 2).flatten(0, 2).contiguous()
