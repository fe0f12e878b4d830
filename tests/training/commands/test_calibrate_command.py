"""`supernet calibrate` on an imported-like checkpoint: statistics and accuracies from data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from subnetact import load_executor
from supernet import Checkpoint, ServedSubnet, cost, load_checkpoint, save_checkpoint
from training.commands.calibrate_command import calibrate, recalibrated
from training.commands.precision_command import precision
from training.data.array_folder import ArraySplit, write_array_folder
from training.data.data import load_dataset
from training.evaluation.evaluate import measure


@pytest.fixture(scope="module")
def imported(trained: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network as `supernet import` leaves one: the largest, its accuracy unknown."""
    out = tmp_path_factory.mktemp("checkpoint")
    data, largest = load_dataset("digits"), trained.definition.space.largest
    statistics = measure(
        trained.state,
        trained.definition,
        largest,
        input_spec=trained.input,
        calibration=data.train,
        calibration_images=512,
        held_out=data.validation,
    ).statistics
    unknown = ServedSubnet(
        arch=largest,
        accuracy=0.0,
        ci95=(0.0, 1.0),
        **cost(trained.definition, largest)._asdict(),
    )
    alone = trained.serving((unknown,), {largest.subnet_id: statistics}, "")
    imported = replace(alone, classes=(), provenance={"origin": "test"})
    save_checkpoint(imported, out / "imported")
    return out / "imported"


def run(imported: Path, digits_folder: Path, out: Path | None, **options) -> None:
    values = {
        "ladder": True,
        "arch": None,
        "min_accuracy": 0.0,
        "images": 512,
        "recalibrate": False,
    }
    calibrate(checkpoint=imported, data=digits_folder, out=out, **{**values, **options})


def test_the_accuracy_before_is_told_where_the_statistics_are_new(
    imported: Path, digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(imported, digits_folder, tmp_path / "out")
    smallest, *_, largest = capsys.readouterr().out.splitlines()
    after, before = (float(text.split(" %")[0].split(" ")[-1]) for text in smallest.split(")"))
    assert after > before + 10, "slices of the largest subnet's statistics describe no other"
    assert "before" not in largest, "it kept its own"


def test_every_subnet_gets_statistics_and_an_accuracy(
    imported: Path, digits_folder: Path, tmp_path: Path
) -> None:
    before = load_checkpoint(imported)
    run(imported, digits_folder, tmp_path / "out", min_accuracy=0.3)
    after = load_checkpoint(tmp_path / "out")
    assert len(after.subnets) >= 3
    assert all(s.accuracy >= 0.3 for s in after.subnets)
    assert after.classes == tuple(map(str, range(10)))
    assert "359 test images" in after.accuracy_source
    assert after.input == before.input  # what the weights expect, not the data's own mean
    for name, tensor in before.state.items():
        assert torch.equal(after.state[name], tensor)
    largest = before.subnet_ids[0]
    if largest in after.subnet_ids:
        for name, tensor in before.norm_statistics[largest].items():
            assert torch.equal(after.norm_statistics[largest][name], tensor)
        run(imported, digits_folder, tmp_path / "anew", ladder=False, recalibrate=True)
        anew = load_checkpoint(tmp_path / "anew")
        assert any(
            not torch.equal(anew.norm_statistics[largest][n], t)
            for n, t in before.norm_statistics[largest].items()
        )
        assert anew.subnets[-1].accuracy > 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_accuracy": 0.999}, "no subnet reaches 0.999: the best is"),
        ({"arch": ["d=7"]}, "d"),
    ],
)
def test_what_can_not_be_is_refused_and_nothing_written(
    imported: Path, digits_folder: Path, tmp_path: Path, options, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as refused:
        run(imported, digits_folder, tmp_path / "out", **options)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_data_of_other_classes_is_refused(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = ArraySplit(np.zeros((8, 1, 8, 8), np.uint8), np.arange(8) % 2)
    write_array_folder(tmp_path / "two", split, split, ["a", "b"])
    with pytest.raises(SystemExit):
        run(imported, tmp_path / "two", tmp_path / "out")
    assert "has 10 classes, two has 2" in capsys.readouterr().err.replace("\n", " ")


def test_int8_is_measured_and_offered_where_it_loses_little(
    imported: Path, digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(imported, digits_folder, tmp_path / "measured")
    before = load_checkpoint(tmp_path / "measured")
    precision(checkpoint=tmp_path / "measured", data=digits_folder, tolerance=2.0)
    after = load_checkpoint(tmp_path / "measured")
    assert after.fingerprint == before.fingerprint
    assert after.subnets == before.subnets
    for subnet, int8 in zip(after.subnets, after.int8_subnets, strict=True):
        assert int8.subnet_id == f"{subnet.subnet_id}-i8"
        assert abs(int8.accuracy - subnet.accuracy) < 0.03
        assert int8.accuracy != 0.5, "measured, not copied"
        assert after.activation_ranges[subnet.subnet_id]
    executor = load_executor(after)
    assert set(executor.subnet_ids) == {form.subnet_id for form in after.forms}
    int8_id = after.int8_subnets[-1].subnet_id
    test = load_dataset("digits").test.take(torch.arange(16))
    hits = executor.run(int8_id, test.images.numpy()).argmax(axis=1) == test.labels.numpy()
    assert hits.mean() > 0.6
    precision(checkpoint=tmp_path / "measured", data=digits_folder, tolerance=0.0)
    strict = load_checkpoint(tmp_path / "measured")
    offered = {form.arch for form in strict.int8_subnets}
    printed = capsys.readouterr().out
    assert strict.subnets == before.subnets
    assert printed.count("no") >= len(before.subnets) - len(offered)


def test_tuning_keeps_what_helps_on_held_out_images(imported: Path) -> None:
    loaded = load_checkpoint(imported)
    data, space = load_dataset("digits"), loaded.definition.space
    archs = [space.smallest, space.largest]
    plain, tuned = (
        recalibrated(
            loaded, data, archs, images=512, keep_statistics=False, min_accuracy=0.0,
            tune_epochs=epochs,
        )[0]
        for epochs in (0.0, 3.0)
    )  # fmt: skip

    def on_validation(checkpoint: Checkpoint) -> float:
        return measure(
            loaded.state, loaded.definition, space.smallest, input_spec=loaded.input,
            calibration=data.train, calibration_images=512, held_out=data.validation,
            statistics=checkpoint.norm_statistics[space.smallest.subnet_id],
        ).accuracy  # fmt: skip

    assert on_validation(tuned) >= on_validation(plain)
    large = space.largest.subnet_id
    for name, tensor in plain.norm_statistics[large].items():
        assert torch.equal(tuned.norm_statistics[large][name], tensor)


def test_the_accuracy_before_tuning_is_told_where_statistics_were_kept(trained: Checkpoint) -> None:
    """Tuned statistics are new ones as well; only calibrated ones counted as such."""
    space = trained.definition.space
    small, large = space.smallest.subnet_id, space.largest.subnet_id
    # Off by so much that tuning is sure to help.
    poor = {k: t * 4 if k.endswith("var") else t for k, t in trained.norm_statistics[small].items()}
    known = {small: poor, large: trained.norm_statistics[large]}
    done, before = recalibrated(
        replace(trained, norm_statistics=known), load_dataset("digits"),
        [space.smallest, space.largest], images=512, keep_statistics=True, min_accuracy=0.0,
        tune_epochs=3.0,
    )  # fmt: skip
    new = {
        name
        for name, statistics in done.norm_statistics.items()
        if any(not torch.equal(known[name][k], t) for k, t in statistics.items())
    }
    assert new == {small}
    assert set(before) == new
    assert before[small] < next(s.accuracy for s in done.subnets if s.subnet_id == small)
