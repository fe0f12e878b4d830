"""On which samples norm statistics are calibrated: drawn ones, whatever the order of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from supernet import Checkpoint
from training.config import DataConfig
from training.data.data import drawn_batches, load_dataset
from training.data.samples import Samples, Split
from training.evaluation.evaluate import Measurement, measure

DIGITS = load_dataset("digits")
NUM_CALIBRATED = 128


def calibrated(checkpoint: Checkpoint, calibration: Samples) -> Measurement:
    return measure(
        checkpoint.state,
        checkpoint.definition,
        checkpoint.definition.space.largest,
        input_spec=checkpoint.input,
        calibration=calibration,
        calibration_images=NUM_CALIBRATED,
        held_out=DIGITS.validation,
    )


def reordered(order: torch.Tensor) -> Split:
    return DIGITS.train.take(order)


def distance(a: Measurement, b: Measurement) -> float:
    """Mean difference of the means, in deviations of what is normalised."""
    gaps = [
        ((mean - b.statistics[name]) / a.statistics[name.replace("mean", "var")].sqrt()).abs()
        for name, mean in a.statistics.items()
        if name.endswith("mean")
    ]
    return float(torch.cat(gaps).mean())


def test_statistics_of_class_sorted_data_equal_those_of_shuffled_data(trained: Checkpoint) -> None:
    rng = np.random.default_rng(3)
    shuffles = [
        calibrated(trained, reordered(torch.from_numpy(rng.permutation(len(DIGITS.train)))))
        for _ in range(4)
    ]
    by_class = calibrated(trained, reordered(torch.argsort(DIGITS.train.labels, stable=True)))
    noise = max(distance(a, b) for a in shuffles for b in shuffles)
    assert max(distance(by_class, other) for other in shuffles) < 1.5 * noise
    assert by_class.accuracy > min(m.accuracy for m in shuffles) - 0.02


def test_every_batch_is_mixed_and_no_sample_comes_twice() -> None:
    rows = torch.arange(1000)
    by_class = Split(rows.view(-1, 1, 1, 1), rows // 100)
    batches = list(drawn_batches(by_class, 64, 450))
    assert [len(batch) for batch in batches] == [57, 57, 56, 56, 56, 56, 56, 56]
    seen = torch.cat([batch.images.flatten() for batch in batches])
    assert len(seen.unique()) == 450
    assert all(len(batch.labels.unique()) >= 8 for batch in batches)
    assert len(list(drawn_batches(by_class, 64, 5000))) == 16, "all, where there are fewer"
    again = torch.cat([batch.images.flatten() for batch in drawn_batches(by_class, 64, 450)])
    assert torch.equal(seen, again)


def test_a_folder_of_images_is_calibrated_on_all_classes(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("val", 4)):
        for label in range(4):
            (tmp_path / split / f"c{label}").mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (16, 16), (60 * label, 0, 0))
                picture.save(tmp_path / split / f"c{label}" / f"{i}.png")
    data = load_dataset(DataConfig(name="images", path=str(tmp_path), size=8))
    (batch,) = drawn_batches(data.train, 64, 32)
    assert batch.labels.unique().tolist() == [0, 1, 2, 3]
