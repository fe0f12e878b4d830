"""`OneBitBench`: the rows of part onebit, and, where it is asked for, what has to be trained."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from serve.bench.actuation.bench_net import BenchNet
from serve.bench.decoder.bench import random_checkpoint
from serve.bench.one_bit.decoder_rows import benched_decoders, decoder_rows
from serve.bench.one_bit.kernel_rows import CONVOLUTIONS, FULL_STACK, convolution_rows, kernel_rows
from serve.bench.one_bit.precision_rows import decoder_quality_rows, precision_rows
from serve.bench.one_bit.precision_runs import PrecisionRuns, cifar_config
from serve.bench.one_bit.storage_rows import storage_rows
from serve.bench.rows import Row, Tell
from training.config import load_config

CONFIGS = Path(__file__).parents[3] / "configs"
_FUZZED = 300
# One epoch of eight: what is compared are runs of equal length, and steps of half the size.
_TEXT_CHANGES = ("threads=1", "schedule.epochs=1", "data.batch_size=4")
_SMALLER = (2, 256, 128)  # a stack for a run that measures nothing in earnest


class OneBitTraining(NamedTuple):
    """What is trained: `folder` keeps the runs, `data` are images, `text` is a file; either."""

    folder: Path
    data: Path | None
    text: Path | None
    seeds: int


class OneBitBench:
    """Measures the kernel, sizes and decoders; with a `training`, accuracies as well."""

    def __init__(
        self, net: BenchNet, training: OneBitTraining | None, *, thoroughness: float, tell: Tell
    ):
        """`net` is whose size is told, `thoroughness` stretches the seconds of each figure.

        Raises ValueError for a training of neither images nor text.
        """
        if training is not None and training.data is None and training.text is None:
            raise ValueError("--train needs --data DIR (images), --text FILE (a decoder), or both")
        self._net, self._training = net, training
        self._thoroughness, self._tell = thoroughness, tell

    @torch.inference_mode()
    def run(self) -> list[Row]:
        """Return the rows; a training comes last, and goes on where it was stopped."""
        rows = [*self._measured()]
        if self._training is not None:
            with torch.inference_mode(False):
                rows += self._trained(self._training)
        return rows

    def _measured(self) -> list[Row]:
        is_quick = self._thoroughness == 0.0
        rows = kernel_rows(
            stack=_SMALLER if is_quick else FULL_STACK,
            cases=20 if is_quick else _FUZZED,
            at_least_s=8.0 * self._thoroughness,
            tell=self._tell,
        )
        rows += convolution_rows(
            CONVOLUTIONS[-1:] if is_quick else CONVOLUTIONS,
            at_least_s=2.0 * self._thoroughness,
            tell=self._tell,
        )
        decoders = benched_decoders()
        checkpoint = self._net.checkpoint(self._net.served[:1])
        rows += storage_rows(self._net.name, checkpoint)
        rows += storage_rows("small_decoder", random_checkpoint(decoders["small"]))
        for name in list(decoders)[: 1 if is_quick else None]:
            rows += decoder_rows(
                name, decoders[name], at_least_s=6.0 * self._thoroughness, tell=self._tell
            )
        return rows

    def _trained(self, training: OneBitTraining) -> list[Row]:
        rows: list[Row] = []
        seeds = range(training.seeds)
        if training.data is not None:
            runs = PrecisionRuns(
                cifar_config(training.data), training.folder / "images", tell=self._tell
            )
            at_least_s = 4.0 * self._thoroughness
            rows += precision_rows(runs, seeds=seeds, at_least_s=at_least_s, tell=self._tell)
        if training.text is not None:
            changes = [f"data.path={training.text}", *_TEXT_CHANGES]
            config = load_config(CONFIGS / "train_decoder_shakespeare.toml", changes)
            runs = PrecisionRuns(config, training.folder / "decoder", tell=self._tell)
            rows += decoder_quality_rows(runs, seeds[:1])
        return rows
