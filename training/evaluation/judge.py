"""`Judge`: how right a subnet is on each held-out sample, measured once on each split.

What a search knows of accuracy. Here for samples with labels and for embeddings; of decoders in
`agreement_judge.py`.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import torch

from supernet import Arch, Checkpoint, SupernetDefinition
from training.data.samples import Dataset, Samples, Subset
from training.evaluation.evaluate import Measurement, measure, wilson_interval
from training.evaluation.journal import SearchJournal
from training.evaluation.retrieval import reference_neighbours

Held = Literal["validation", "test"]


class Judge(Protocol):
    """Measures subnets of one checkpoint on one data set."""

    @property
    def source(self) -> str:
        """On what accuracies are measured, in words, as a checkpoint says it."""
        ...

    def scores(self, arch: Arch, split: Held) -> np.ndarray:
        """(N,) how right a subnet is on each sample, 0 to 1; their mean is its accuracy."""
        ...

    def interval(self, scores: np.ndarray) -> tuple[float, float]:
        """Return the 95 % interval of the mean of (N,) scores."""
        ...

    def statistics(self, arch: Arch) -> dict[str, torch.Tensor]:
        """Return a subnet's own norm statistics."""
        ...


class SampleJudge:
    """Right is the label, or for an embedding the neighbour that the largest subnet finds."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: Dataset,
        calibration_images: int,
        journal: SearchJournal,
    ):
        """What `journal` holds is not measured again; statistics come from training samples."""
        self._checkpoint, self._data = checkpoint, data
        self._calibration_images, self._journal = calibration_images, journal
        self._statistics: dict[str, dict[str, torch.Tensor]] = {}
        self._references: dict[int, torch.Tensor | None] = {}

    @property
    def source(self) -> str:
        """See `Judge`."""
        return reported_on(self._data, self._calibration_images, self._checkpoint.definition)

    def scores(self, arch: Arch, split: Held) -> np.ndarray:
        """See `Judge`; booleans, with the subnet's own statistics."""
        known = self._journal.get(arch.subnet_id, split)
        if known is None:
            known = self._measured(arch, getattr(self._data, split)).correct.numpy()
            self._journal.add(arch.subnet_id, split, known)
        return known

    def interval(self, scores: np.ndarray) -> tuple[float, float]:
        """See `Judge`; Wilson's."""
        return wilson_interval(int(scores.sum()), len(scores))

    def statistics(self, arch: Arch) -> dict[str, torch.Tensor]:
        """See `Judge`."""
        if arch.subnet_id not in self._statistics:  # its answers came from the journal
            self._measured(arch, Subset(self._data.train, torch.arange(1)))
        return self._statistics[arch.subnet_id]

    def _measured(self, arch: Arch, samples: Samples) -> Measurement:
        measured = measure(
            self._checkpoint.state,
            self._checkpoint.definition,
            arch,
            input_spec=self._checkpoint.input,
            calibration=self._data.train,
            calibration_images=self._calibration_images,
            held_out=samples,
            statistics=self._statistics.get(arch.subnet_id),
            reference=self._reference(samples),
        )
        self._statistics[arch.subnet_id] = measured.statistics
        return measured

    def _reference(self, samples: Samples) -> torch.Tensor | None:
        """What the largest's embeddings are nearest to, once per split; None for logits."""
        definition = self._checkpoint.definition
        if definition.output.kind == "logits" or len(samples) < 3:
            return None
        if id(samples) not in self._references:
            self._references[id(samples)] = reference_neighbours(
                self._checkpoint.state, definition, samples, self._checkpoint.input
            )
        return self._references[id(samples)]


def reported_on(data: Dataset, calibration_images: int, definition: SupernetDefinition) -> str:
    """What accuracies of a search were measured on, in words, and of embeddings what they are."""
    is_embedding = definition.output.kind == "embedding"
    what = "nearest neighbours that agree with the largest's; " if is_embedding else ""
    return (
        f"{what}{data.name}: {len(data.test)} test images that nothing was chosen on; chosen on "
        f"{len(data.validation)} others, statistics calibrated on "
        f"{min(calibration_images, len(data.train))} training images"
    )
