"""The tokenizer inside a GGUF file, as a `tokenizer.json`: byte-level BPE of the known kinds."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from supernet.text import TextSpec
from supernet.weights.weight_files import WeightsError

_CONTROL, _USER_DEFINED = 3, 4  # token types
# Tokens after which nothing follows, whichever of them the file calls its end.
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "</s>")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {  # how text is cut before merging, by `tokenizer.ggml.pre`; None: GPT-2's own way
    "smollm": None,
    "gpt-2": None,
    "default": None,
    "qwen2": _WORDS.replace("DIGITS", ""),
    "llama-bpe": _WORDS.replace("DIGITS", "{1,3}"),
}


def text_of(source: Path, fields: Mapping[str, Any]) -> TextSpec:
    """Return the tokenizer, chat template, and ids that begin and end a text.

    Raises WeightsError for another kind of tokenizer, one whose parts do not belong together, or
    without the `tokenizers` package.
    """
    kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _SPLITS:
        raise WeightsError(
            f"{source}: its tokenizer is {kind!r} of kind {pre!r}, supported is 'gpt2' of kind "
            f"{', '.join(_SPLITS)}; import the Hugging Face folder, whose tokenizer.json is taken"
        )
    try:
        package = import_module("tokenizers")
    except ImportError:
        raise WeightsError(
            f"{source}: its tokenizer needs a package: pip install 'supernet-serving[lm]'"
        ) from None
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges: list[str] = fields["tokenizer.ggml.merges"]
    try:
        tokenizer = _tokenizer(package, pre, tokens, merges, fields)
    except Exception as error:  # the package raises bare Exception
        raise WeightsError(f"{source}: its tokenizer can't be made ({error})") from None
    eos = fields.get("tokenizer.ggml.eos_token_id")
    named = [i for i, token in enumerate(tokens) if token in _ENDS]
    ends = dict.fromkeys(([] if eos is None else [eos]) + named)
    return TextSpec(
        tokenizer=tokenizer.to_str(),
        chat_template=fields.get("tokenizer.chat_template", ""),
        bos_id=fields.get("tokenizer.ggml.bos_token_id"),
        eos_ids=tuple(ends),
    )


def _tokenizer(
    package: Any, pre: str, tokens: list[str], merges: list[str], fields: Mapping[str, Any]
) -> Any:
    """Raises whatever the package does for parts that do not belong together."""
    types = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    tokenizer = package.Tokenizer(
        package.models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=pre == "llama-bpe",
        )
    )
    tokenizer.pre_tokenizer = _pre_tokenizer(package, pre)
    tokenizer.decoder = package.decoders.ByteLevel()
    tokenizer.add_special_tokens(_added(package, tokens, types, _CONTROL))
    tokenizer.add_tokens(_added(package, tokens, types, _USER_DEFINED))
    bos = fields.get("tokenizer.ggml.bos_token_id")
    # Where a file does not say, as llama.cpp does: of these kinds only Llama 3's begins every text.
    if bos is not None and fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        tokenizer.post_processor = package.processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def _pre_tokenizer(package: Any, pre: str) -> Any:
    pieces = package.pre_tokenizers
    pattern = _SPLITS[pre]
    if pattern is not None:
        cut = pieces.Split(package.Regex(pattern), behavior="isolated")
        return pieces.Sequence([cut, pieces.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = pieces.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return pieces.Sequence([pieces.Digits(individual_digits=True), words])
    return words


def _added(package: Any, tokens: list[str], types: list[int], kind: int) -> list[Any]:
    return [
        package.AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, of_kind in zip(tokens, types, strict=True)
        if of_kind == kind
    ]
