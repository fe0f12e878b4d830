"""What a step of each case costs in processor time, measured side by side.

Runs of the same few steps are made of all cases in turn, several times. Of each step the cheapest
counts: a neighbour on the machine makes a step dearer, never cheaper, and hardly the same one in
every round. A short run has all phases of a long one, each for its share of the steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from serve.bench.training.cases import of_length
from serve.bench.training.timed_run import StoppedError
from supernet import SupernetDefinition
from training.config import TrainConfig
from training.data.samples import Dataset
from training.trainer.run_log import StepReport
from training.trainer.trainer import Trainer, TrainingDivergedError

STEPS = 60
ROUNDS = 3


def seconds_per_step(
    configs: Mapping[str, TrainConfig],
    definition: SupernetDefinition,
    data: Dataset,
    out: Path,
    *,
    tell: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> dict[str, float]:
    """Return the processor time of a case's mean step (s). Raises StoppedError."""
    # What happens once in a run is not to count as if it happened once in sixty steps.
    configs = {
        case: replace(config, schedule=replace(config.schedule, front=0.0))
        for case, config in configs.items()
    }
    cheapest = {case: np.full(STEPS, np.inf) for case in configs}
    for number in range(ROUNDS):
        tell(f"what a step costs: round {number + 1} of {ROUNDS}")
        for case, config in configs.items():
            folder = out / case
            folder.mkdir(parents=True, exist_ok=True)
            seconds = _step_seconds(of_length(config, STEPS), definition, data, folder, should_stop)
            cheapest[case] = np.minimum(cheapest[case], seconds)
    return {case: float(seconds.mean()) for case, seconds in cheapest.items()}


def _step_seconds(
    config: TrainConfig,
    definition: SupernetDefinition,
    data: Dataset,
    folder: Path,
    should_stop: Callable[[], bool],
) -> np.ndarray:
    """(STEPS,) processor seconds of each step."""
    trainer = Trainer(config, definition, data, folder)
    seconds: list[float] = []
    last_s = time.process_time()

    def note(_: StepReport) -> None:
        nonlocal last_s
        now_s = time.process_time()
        seconds.append(now_s - last_s)
        last_s = now_s

    try:
        if not trainer.run(progress=note, should_stop=should_stop):
            raise StoppedError
    except TrainingDivergedError as error:
        raise RuntimeError(f"a run of {STEPS} steps to time them diverged: {error}") from None
    return np.array(seconds)
