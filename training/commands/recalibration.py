"""`recalibrated`: a checkpoint that serves what pays on given data, with statistics from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from rich.progress import Progress

from slackfit.plain_console import plain_console
from supernet import Arch, Checkpoint, ServedSubnet, cost
from training.config import DataConfig
from training.data.samples import Dataset, Samples
from training.evaluation.evaluate import Measurement, measure, pareto_of
from training.evaluation.judge import reported_on
from training.evaluation.retrieval import reference_neighbours
from training.evaluation.tune_norms import TuningOptions, tune_norms
from training.progress import tracked

Statistics = Mapping[str, torch.Tensor]

console = plain_console(stderr=True)


def recalibrated(
    checkpoint: Checkpoint,
    data: Dataset,
    archs: list[Arch],
    *,
    images: int,
    keep_statistics: bool,
    min_accuracy: float,
    tune_epochs: float = 0.0,
) -> tuple[Checkpoint, dict[str, float]]:
    """Return the checkpoint serving those of `archs` that pay.

    They are chosen on the validation images, and the test images report what was chosen, once.
    Statistics come from `images` drawn training images; `keep_statistics` keeps those that a
    subnet has. Beside it the test accuracies, by subnet id, of served subnets whose statistics are
    new, with the ones before (its own, or slices of the supernet's). With `tune_epochs` above 0 the
    normalisation of each is tuned for so long where that helps on the validation images. Raises
    ValueError when no subnet reaches `min_accuracy`, or when there is nothing to tune.
    """
    work = Recalibration(checkpoint, data, images, keep_statistics=keep_statistics)
    with tracked(archs, "measure", console) as following:
        measured = [work.on_validation(arch) for arch in following]
    chosen = work.that_pay(measured, min_accuracy)
    if tune_epochs:
        chosen = work.tuned(chosen, measured, tune_epochs)
    served: list[Measurement] = []
    before: dict[str, float] = {}
    with tracked(chosen, "test", console) as following:
        for m in following:
            served.append(work.on_test(m))
            if work.is_new(m):
                before[m.arch.subnet_id] = work.accuracy_before(m.arch)
    return work.checkpoint_of(served), before


class Recalibration:
    """Measures subnets of one checkpoint on one data set, chooses and tunes."""

    def __init__(
        self, checkpoint: Checkpoint, data: Dataset, images: int, *, keep_statistics: bool
    ) -> None:
        """Calibrate on `images` drawn training images; `keep_statistics` keeps what there is."""
        self._checkpoint, self._data, self._images = checkpoint, data, images
        self._known: Mapping[str, Statistics] = (
            checkpoint.norm_statistics if keep_statistics else {}
        )
        self._validation_reference = self._reference(data.validation)
        self._test_reference = self._reference(data.test)

    def on_validation(self, arch: Arch, statistics: Statistics | None = None) -> Measurement:
        """Measure a subnet on the validation images, with given statistics, known or new ones."""
        if statistics is None:
            statistics = self._known.get(arch.subnet_id)
        return self._measure(arch, self._data.validation, statistics, self._validation_reference)

    def on_test(self, chosen: Measurement) -> Measurement:
        """Measure a subnet on the test images with the statistics that it was chosen with."""
        return self._measure(chosen.arch, self._data.test, chosen.statistics, self._test_reference)

    def is_new(self, chosen: Measurement) -> bool:
        """Whether its statistics, if it has any, are others than those that were kept."""
        kept = self._known.get(chosen.arch.subnet_id, {})
        return any(kept.get(name) is not tensor for name, tensor in chosen.statistics.items())

    def accuracy_before(self, arch: Arch) -> float:
        """Test accuracy with the checkpoint's own statistics, or slices of the supernet's."""
        own = self._checkpoint.norm_statistics.get(arch.subnet_id, {})
        return self._measure(arch, self._data.test, own, self._test_reference).accuracy

    def that_pay(self, measured: list[Measurement], min_accuracy: float) -> list[Measurement]:
        """Return the Pareto set of those that are accurate enough, by MACs.

        Raises ValueError when none is.
        """
        good = [m for m in measured if m.accuracy >= min_accuracy]
        if not good:
            best = max(measured, key=lambda m: m.accuracy)
            raise ValueError(
                f"no subnet reaches {min_accuracy:g}: the best is {best.arch.subnet_id} with "
                f"{best.accuracy:.4f} on {len(self._data.validation)} held-out images of "
                f"{self._data.name}; are its classes in the order of the network's?"
            )
        return pareto_of(good, lambda m: cost(self._checkpoint.definition, m.arch).macs)

    def tuned(
        self, chosen: list[Measurement], measured: list[Measurement], epochs: float
    ) -> list[Measurement]:
        """Return what tuning makes of each chosen one, on the validation images, where it helps.

        Trains on images augmented as when the supernet was trained. The largest teaches, with its
        statistics among `measured` or else new ones. Raises ValueError when there is nothing to
        tune.
        """
        largest = self._checkpoint.definition.space.largest
        teacher = next((m for m in measured if m.arch == largest), None)
        statistics = {m.arch: m.statistics for m in chosen}
        statistics[largest] = (teacher or self.on_validation(largest)).statistics
        with Progress(console=console) as bar:
            task = bar.add_task("tune", total=None)
            tuned = tune_norms(
                self._checkpoint.state,
                self._checkpoint.definition,
                statistics,
                self._data.train,
                self._checkpoint.input,
                TuningOptions(epochs, self._trained_on()),
                lambda done, total: bar.update(task, completed=done, total=total),
            )
        return [_better(m, self.on_validation(m.arch, tuned[m.arch])) for m in chosen]

    def checkpoint_of(self, served: list[Measurement]) -> Checkpoint:
        """Return the checkpoint that serves what was measured on the test images."""
        definition = self._checkpoint.definition
        done = self._checkpoint.serving(
            tuple(
                ServedSubnet(
                    arch=m.arch,
                    accuracy=m.accuracy,
                    ci95=m.ci95,
                    **cost(definition, m.arch)._asdict(),
                )
                for m in served
            ),
            {m.arch.subnet_id: m.statistics for m in served},
            reported_on(self._data, self._images, definition),
        )
        return replace(done, classes=self._data.classes)

    def _measure(
        self,
        arch: Arch,
        held_out: Samples,
        statistics: Statistics | None,
        reference: torch.Tensor | None,
    ) -> Measurement:
        return measure(
            self._checkpoint.state,
            self._checkpoint.definition,
            arch,
            input_spec=self._checkpoint.input,
            calibration=self._data.train,
            calibration_images=self._images,
            held_out=held_out,
            statistics=statistics,
            reference=reference,
        )

    def _reference(self, split: Samples) -> torch.Tensor | None:
        return reference_neighbours(
            self._checkpoint.state, self._checkpoint.definition, split, self._checkpoint.input
        )

    def _trained_on(self) -> DataConfig:
        recorded: Mapping[str, Any] = self._checkpoint.provenance.get("config", {})
        return DataConfig(**recorded["data"]) if "data" in recorded else DataConfig(augment=0.0)


def _better(as_it_was: Measurement, tuned: Measurement) -> Measurement:
    return tuned if tuned.accuracy > as_it_was.accuracy else as_it_was
