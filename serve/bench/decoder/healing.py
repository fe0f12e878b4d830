"""What healing gains: perplexities of each width before and after, on texts not trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from serve.bench.rows import Row, Tell, row
from supernet.checkpoint import Checkpoint, load_checkpoint
from supernet.families.decoder import DecoderConfig
from supernet.subnets.agreement import Agreement, top1_agreement
from supernet.tokenizer import Tokenizer
from training.data.corpus import held_out_text, read_text, windows_of

_WINDOWS, _SIZE, _AT_ONCE = 48, 256, 4


def healing_rows(unhealed: Path, healed: Path, texts: Sequence[str], tell: Tell) -> list[Row]:
    """Return perplexities of the healed widths over those of the unhealed ones, text by text.

    On windows spread over the last twentieth of each text (a file, or movie_reviews), which no run
    trains on. Raises CheckpointError for a bad folder, DataError for a text that can't be read,
    ValueError where the two are not the same decoder, or a text is too short.
    """
    before, after = load_checkpoint(unhealed), load_checkpoint(healed)
    if before.text is None or not _are_one(before, after):
        raise ValueError(
            f"{unhealed} and {healed} are not the same decoder before and after healing; give both "
            "folders of one, with its tokenizer"
        )
    rows: list[Row] = []
    for name in texts:
        batches = _windows(name, Tokenizer(before.text))
        found = [_measured(checkpoint, batches) for checkpoint in (before, after)]
        short = "reviews" if name == "movie_reviews" else Path(name).parent.name or Path(name).stem
        tokens = sum(ids.numel() for ids in batches)
        for subnet in after.subnets:
            was, now = (each[subnet.subnet_id] for each in found)
            rows.append(
                row(
                    f"decoder/healed/{short}/e{subnet.arch.expand[0]:g}/perplexity_over_unhealed",
                    now.perplexity / was.perplexity,
                    "ratio",
                    f"{now.perplexity:.2f} after {was.perplexity:.2f}, quality {now.share:.3f} "
                    f"after {was.share:.3f}; {tokens} tokens of the end of {name}; "
                    f"{_effort(healed, after)}",
                )
            )
        tell(f"{name}: measured")
    return rows


def _are_one(before: Checkpoint, after: Checkpoint) -> bool:
    """Whether both are one decoder; an epsilon may have been rounded on its way."""
    one: Any = before.definition.config
    other: Any = after.definition.config
    if not isinstance(one, DecoderConfig) or not isinstance(other, DecoderConfig):
        return False
    is_close = math.isclose(one.norm_eps, other.norm_eps, rel_tol=1e-6)
    return is_close and replace(other, norm_eps=one.norm_eps) == one


def _windows(name: str, tokenizer: Tokenizer) -> list[torch.Tensor]:
    text = held_out_text(read_text(name))[: _WINDOWS * _SIZE * 40]
    split = windows_of(tokenizer.encode(text), _SIZE)
    if len(split) < 2:
        raise ValueError(f"{name}: its last twentieth is too short to measure perplexities on")
    rows = torch.linspace(0, len(split) - 1, min(_WINDOWS, len(split))).long()
    return [split.take(part).images.flatten(1).long() for part in rows.split(_AT_ONCE)]


def _measured(checkpoint: Checkpoint, batches: list[torch.Tensor]) -> dict[str, Agreement]:
    archs = [subnet.arch for subnet in checkpoint.subnets]
    return top1_agreement(checkpoint.state, checkpoint.definition, archs, batches)


def _effort(folder: Path, checkpoint: Checkpoint) -> str:
    """Steps and processor time of the run that made a checkpoint, as far as its folder says."""
    config: dict[str, Any] = checkpoint.provenance.get("config", {})
    log = folder / "log.jsonl"
    if not config or not log.exists():
        return "its folder does not say how it was healed"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    hours = sum(line.get("cpu_s", 0.0) for line in lines) / 3600
    steps = max((line.get("step", 0) for line in lines), default=0)
    return f"{steps} steps, {hours:.2f} core hours in its log"
