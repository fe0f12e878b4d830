"""One run of the training benchmark: resumable, its processor time counted, and what it reached."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve.bench.training.cases import ALONE
from slackfit.output_files import write_text
from supernet import Arch, SupernetDefinition
from training.config import TrainConfig
from training.data.data import steps_per_epoch
from training.data.samples import Dataset
from training.evaluation.evaluate import Measurement, measure
from training.evaluation.tune_norms import TuningOptions, tune_norms
from training.trainer.optimization import Tensors
from training.trainer.resume import RESUME_FILE
from training.trainer.run_log import StepReport
from training.trainer.trainer import DIVERGED_FILE, Trainer, TrainingDivergedError

Hits = npt.NDArray[np.bool_]


class StoppedError(Exception):
    """A run was stopped before its end; its state is kept."""


class FinishedRun(NamedTuple):
    """A run that is over, as plain data.

    Accuracies are fractions in the order of the points. `cpu_s` is the processor time of all its
    threads, over all sittings, without measuring. `test_hits` says which of the test samples each
    point got right (`packed`); it and `test` are empty for a run that only chooses. A run that
    diverged answers nothing right.
    """

    case: str
    seed: int
    lr: float
    steps: int
    cpu_s: float
    validation: list[float]
    test: list[float]
    test_hits: str
    is_diverged: bool = False
    validation_hits: str = ""

    def accuracies(self, split: str) -> list[float]:
        """By point, on the `test` or the `validation` samples."""
        return self.test if split == "test" else self.validation

    def hits(self, split: str) -> Hits:
        """(points, samples) which are right, of the `test` or the `validation` samples."""
        return unpacked(self.test_hits if split == "test" else self.validation_hits)


class TimedRun:
    """A run in a folder of its own, to be measured at `points`."""

    def __init__(
        self,
        config: TrainConfig,
        definition: SupernetDefinition,
        data: Dataset,
        folder: Path,
        points: Sequence[Arch],
        *,
        norm_steps: int = 0,
    ):
        """`norm_steps`: for how many steps the norms of the points are tuned after training."""
        self._norm_steps = norm_steps
        self._config, self._definition, self._data = config, definition, data
        self._folder, self._points = folder, points

    def finish(
        self,
        case: str,
        *,
        with_test: bool,
        progress: Callable[[StepReport], None],
        should_stop: Callable[[], bool],
    ) -> FinishedRun:
        """Train to the end, from where it was left, and measure. Raises StoppedError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        resume = (self._folder / RESUME_FILE).exists()
        trainer = Trainer(self._config, self._definition, self._data, self._folder, resume=resume)
        clock = ProcessorClock(self._folder / "seconds.json", is_new=not resume)
        hits: dict[str, Hits] = {}
        is_diverged = False
        try:
            is_over = trainer.run(
                progress=progress, should_stop=should_stop, epoch_end=lambda _: clock.keep()
            )
            cpu_s = clock.stop()
            if not is_over:
                raise StoppedError
            hits, tuning_s = self._hits(trainer, with_test)
            cpu_s += tuning_s
        except TrainingDivergedError:
            cpu_s, is_diverged = clock.stop(), True
            splits = {"validation": self._data.validation, "test": self._data.test}
            wanted = splits if with_test else ("validation",)
            hits = {n: np.zeros((len(self._points), len(splits[n])), np.bool_) for n in wanted}
        return FinishedRun(
            case=case,
            seed=self._config.seed,
            lr=self._config.optimizer.lr,
            steps=trainer.total_steps,
            cpu_s=cpu_s,
            validation=hits["validation"].mean(axis=1).tolist(),
            test=hits["test"].mean(axis=1).tolist() if with_test else [],
            test_hits=packed(hits["test"]) if with_test else "",
            is_diverged=is_diverged,
            validation_hits=packed(hits["validation"]),
        )

    def tidy(self) -> None:
        """Remove what a finished run is resumed from; its log stays."""
        for name in (RESUME_FILE, DIVERGED_FILE):
            (self._folder / name).unlink(missing_ok=True)

    def _hits(self, trainer: Trainer, with_test: bool) -> tuple[dict[str, Hits], float]:
        """(points, samples) which are right, by split, and the seconds that norms were tuned for.

        Statistics are calibrated once a point, on the way to its first answers.
        """
        state = {name: tensor.cpu() for name, tensor in trainer.state().items()}
        first = [self._measured(state, arch, "validation") for arch in self._points]
        statistics, tuning_s = {m.arch: m.statistics for m in first}, 0.0
        if self._norm_steps:
            statistics, tuning_s = self._tuned(state, statistics)
            first = [self._measured(state, a, "validation", statistics[a]) for a in self._points]
        hits = {"validation": np.stack([m.correct.numpy() for m in first])}
        if with_test:
            last = [self._measured(state, a, "test", statistics[a]) for a in self._points]
            hits["test"] = np.stack([m.correct.numpy() for m in last])
        return hits, tuning_s

    def _tuned(
        self, state: Tensors, statistics: Mapping[Arch, Tensors]
    ) -> tuple[dict[Arch, Tensors], float]:
        """Statistics with each point's own scale and offset, and the processor time of it (s)."""
        began_s = time.process_time()
        epochs = self._norm_steps / steps_per_epoch(self._data.train, self._config.data.batch_size)
        tuned = tune_norms(
            state,
            self._definition,
            {arch: dict(own) for arch, own in statistics.items()},
            self._data.train,
            self._data.input,
            TuningOptions(epochs, self._config.data, self._config.seed),
        )
        return tuned, time.process_time() - began_s

    def _measured(
        self, state: Tensors, arch: Arch, split: str, statistics: Tensors | None = None
    ) -> Measurement:
        return measure(
            state,
            self._definition,
            arch,
            input_spec=self._data.input,
            calibration=self._data.train,
            calibration_images=self._config.evaluation.calibration_images,
            held_out=getattr(self._data, split),
            statistics=statistics,
        )


class ProcessorClock:
    """Processor seconds of a run over its sittings, in a small file beside it.

    It is written when a state to resume from is, so what a kill costs is neither in the weights nor
    in the time. A process that stands still (SIGSTOP) uses none.
    """

    def __init__(self, path: Path, *, is_new: bool):
        self._path = path
        self._before_s = 0.0 if is_new or not path.exists() else json.loads(path.read_text())
        self._started_s = time.process_time()

    def keep(self) -> dict[str, float]:
        """Write the sum; returns nothing for the log."""
        self.stop()
        return {}

    def stop(self) -> float:
        """Write the sum and return it."""
        total_s = self._before_s + time.process_time() - self._started_s
        write_text(self._path, json.dumps(total_s) + "\n")
        return total_s


def of_all_shapes(runs: Sequence[FinishedRun]) -> FinishedRun:
    """Runs of one seed, each of one shape by itself, as a run whose points they are.

    Its time is that of all; its rate and steps are those of the last, the largest.
    """
    return runs[-1]._replace(
        case=ALONE,
        cpu_s=sum(run.cpu_s for run in runs),
        validation=[a for run in runs for a in run.validation],
        test=[a for run in runs for a in run.test],
        test_hits=_together([run.test_hits for run in runs]),
        validation_hits=_together([run.validation_hits for run in runs]),
        is_diverged=any(run.is_diverged for run in runs),
    )


def _together(texts: Sequence[str]) -> str:
    return packed(np.concatenate([unpacked(text) for text in texts])) if all(texts) else ""


def packed(hits: Hits) -> str:
    """Return (points, samples) booleans as a short text."""
    bits = base64.b64encode(np.packbits(hits).tobytes()).decode("ascii")
    return f"{hits.shape[0]}x{hits.shape[1]}:{bits}"


def unpacked(text: str) -> Hits:
    """Return what `packed` was given."""
    shape, _, bits = text.partition(":")
    points, samples = map(int, shape.split("x"))
    raw = np.frombuffer(base64.b64decode(bits), np.uint8)
    flat = np.unpackbits(raw, count=points * samples)
    return flat.reshape(points, samples).astype(np.bool_)
