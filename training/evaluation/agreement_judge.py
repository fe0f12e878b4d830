"""`AgreementJudge`: on which tokens of held-out text a decoder's subnet agrees with the largest.

A sample is a window of text: tokens of one window err together, so intervals and the bootstrap of
a search count windows and not tokens. No labels are needed, and no statistics either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from supernet import Arch, Checkpoint, ServedSubnet, cost, extract
from supernet.subnets.agreement import TOP1_AGREEMENT, next_tokens
from training.data.samples import Dataset
from training.evaluation.decoder import spread_windows
from training.evaluation.evolution import Aim, front
from training.evaluation.journal import SearchJournal
from training.evaluation.judge import Held

_Z = 1.959963984540054
_SPLITS: tuple[Held, Held] = ("test", "validation")


class AgreementJudge:
    """See `Judge`; a score is the share of a window's next tokens that are the largest's."""

    def __init__(self, checkpoint: Checkpoint, data: Dataset, windows: int, journal: SearchJournal):
        """At most `windows` windows of each split, spread over it, are read.

        What `journal` holds is not measured again.
        """
        self._checkpoint, self._data, self._journal = checkpoint, data, journal
        self._windows = windows
        self._wanted: dict[Held, list[torch.Tensor]] = {}

    @property
    def source(self) -> str:
        """See `Judge`; begins with the kind of quality, as a profile names it."""
        config: Any = self._checkpoint.definition.config
        test, validation = (self._count(split) for split in _SPLITS)
        return (
            f"{TOP1_AGREEMENT}: next tokens as the largest says, of {test} windows of "
            f"{config.num_tokens} tokens of {self._data.name} that nothing was chosen on; chosen "
            f"on {validation} others"
        )

    def scores(self, arch: Arch, split: Held) -> np.ndarray:
        """See `Judge`."""
        agreed = self._journal.get(arch.subnet_id, split)
        if agreed is None:
            agreed = self._agreed(arch, split)
            self._journal.add(arch.subnet_id, split, agreed)
        return agreed.reshape(self._count(split), -1).mean(1)

    def interval(self, scores: np.ndarray) -> tuple[float, float]:
        """See `Judge`; normal, of windows."""
        mean = float(scores.mean())
        if len(scores) < 2:
            return 0.0, 1.0
        half = _Z * float(scores.std(ddof=1)) / math.sqrt(len(scores))
        return max(0.0, mean - half), min(1.0, mean + half)

    def statistics(self, arch: Arch) -> dict[str, torch.Tensor]:
        """See `Judge`; a decoder has none."""
        return {}

    def _agreed(self, arch: Arch, split: Held) -> np.ndarray:
        """(W * N,) booleans, window by window."""
        net = self._network(arch)
        texts = self._texts(split)
        if split not in self._wanted:
            largest = self._checkpoint.definition.space.largest
            judge = net if arch == largest else self._network(largest)
            self._wanted[split] = next_tokens(judge, texts)
        found = zip(next_tokens(net, texts), self._wanted[split], strict=True)
        return torch.cat([(said == wanted).flatten() for said, wanted in found]).numpy()

    def _network(self, arch: Arch) -> torch.nn.Module:
        return extract(self._checkpoint.state, self._checkpoint.definition, arch)

    def _texts(self, split: Held) -> list[torch.Tensor]:
        return spread_windows(getattr(self._data, split), self._windows)

    def _count(self, split: Held) -> int:
        return min(self._windows, len(getattr(self._data, split)))


def with_qualities(
    checkpoint: Checkpoint,
    data: Dataset,
    archs: Iterable[Arch],
    *,
    windows: int,
    min_quality: float = 0.0,
) -> Checkpoint:
    """Return a decoder's checkpoint that serves those of `archs` that pay, by quality on `data`.

    They are chosen on the validation windows, and the test windows report what was chosen. Raises
    ValueError when no subnet reaches `min_quality`.
    """
    judge = AgreementJudge(checkpoint, data, windows, SearchJournal())
    definition = checkpoint.definition
    aims: dict[Arch, Aim] = {}
    for arch in archs:
        quality = float(judge.scores(arch, "validation").mean())
        aims[arch] = Aim(float(cost(definition, arch).macs), quality)
    good = {arch: aim for arch, aim in aims.items() if aim.accuracy >= min_quality}
    if not good:
        best = max(aims, key=lambda arch: aims[arch].accuracy)
        raise ValueError(
            f"no subnet reaches {min_quality:g}: the best is {best.subnet_id} with "
            f"{aims[best].accuracy:.4f} on held-out text of {data.name}"
        )
    served: list[ServedSubnet] = []
    for arch in front(good):
        scores = judge.scores(arch, "test")
        served.append(
            ServedSubnet(
                arch=arch,
                accuracy=float(scores.mean()),
                ci95=judge.interval(scores),
                **cost(definition, arch)._asdict(),
            )
        )
    statistics = {subnet.subnet_id: judge.statistics(subnet.arch) for subnet in served}
    return checkpoint.serving(tuple(served), statistics, judge.source)
