"""`RaggedBatch`: the rows of one iteration, decodes and parts of prompts of any length together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from subnetact.decoding.extents import SequenceId


class Chunk(NamedTuple):
    """The next tokens of one sequence: those behind what is cached of it.

    One token is a decode, more are part of a prompt. With `samples` the logits behind its last
    token are wanted.
    """

    sequence: SequenceId
    ids: tuple[int, ...]
    samples: bool = True


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """Chunks as flat rows: ids and positions (T,), and the rows whose logits are wanted (S,)."""

    chunks: tuple[Chunk, ...]
    starts: tuple[int, ...]
    ids: torch.Tensor
    positions: torch.Tensor
    sampled_rows: torch.Tensor

    @classmethod
    def of(
        cls,
        chunks: Sequence[Chunk],
        starts: Sequence[int],
        *,
        vocab_size: int,
        max_positions: int,
        device: str = "cpu",
    ) -> RaggedBatch:
        """Lay out chunks; `starts` says how many tokens of each sequence are cached.

        Raises ValueError: no chunk, an empty one, a sequence twice, an id that the vocabulary does
        not have, a context over the limit.
        """
        if not chunks:
            raise ValueError("an iteration needs at least one chunk, got none")
        if len({chunk.sequence for chunk in chunks}) < len(chunks):
            raise ValueError("an iteration runs one chunk of a sequence, got several of one")
        ids: list[int] = []
        positions: list[int] = []
        sampled: list[int] = []
        for chunk, start in zip(chunks, starts, strict=True):
            _check(chunk, start, vocab_size, max_positions)
            ids += chunk.ids
            positions += range(start, start + len(chunk.ids))
            if chunk.samples:
                sampled.append(len(ids) - 1)
        rows = [torch.tensor(r, dtype=torch.long, device=device) for r in (ids, positions, sampled)]
        return cls(tuple(chunks), tuple(starts), rows[0], rows[1], rows[2])

    def __len__(self) -> int:
        return len(self.ids)


def _check(chunk: Chunk, start: int, vocab_size: int, max_positions: int) -> None:
    if not chunk.ids:
        raise ValueError(f"sequence {chunk.sequence!r} has an empty chunk; give a token or more")
    if min(chunk.ids) < 0 or max(chunk.ids) >= vocab_size:
        wrong = next(i for i in chunk.ids if not 0 <= i < vocab_size)
        raise ValueError(
            f"sequence {chunk.sequence!r} has token {wrong}, allowed 0 to {vocab_size - 1}"
        )
    if start + len(chunk.ids) > max_positions:
        raise ValueError(
            f"sequence {chunk.sequence!r} would be {start + len(chunk.ids)} tokens long, "
            f"allowed {max_positions} (the network's longest context)"
        )
