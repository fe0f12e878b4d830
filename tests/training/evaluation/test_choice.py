"""What is served is chosen on validation images; test images report it and choose nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from supernet import Checkpoint, load_checkpoint
from training.commands.calibrate_command import recalibrated
from training.config import TrainConfig, config_from_json
from training.data.checkpoint_data import dataset_of
from training.data.samples import Dataset, Split
from training.evaluation.int8 import measure_int8
from training.evaluation.search import Search, SearchOptions
from training.run import train

# What these runs hold out and go on from is what matters, not how good they become.
CONFIG = {
    "threads": 1,
    "amp": "off",
    "supernet": {"variant": "resnet_tiny"},
    "data": {"batch_size": 64},
    "schedule": {"epochs": 1},
    "evaluation": {"calibration_images": 64, "uniform": False, "random_archs": 0, "search": 0},
}


def with_other_test(data: Dataset) -> Dataset:
    """Test labels that no network gets right: whoever looks at them chooses something else."""
    assert isinstance(data.test, Split)
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(1))
    return replace(data, test=Split(data.test.images, data.test.labels[order]))


def test_calibrate_chooses_the_same_whatever_the_test_labels_are(trained: Checkpoint) -> None:
    data = dataset_of(trained)
    served = [
        recalibrated(
            trained,
            images_of,
            list(trained.definition.space.uniforms()),
            images=256,
            keep_statistics=False,
            min_accuracy=0.3,
        )[0]
        for images_of in (data, with_other_test(data))
    ]
    assert served[0].subnet_ids == served[1].subnet_ids
    assert served[0].subnets[-1].accuracy > 0.7 > served[1].subnets[-1].accuracy


def test_a_search_and_a_precision_choose_the_same_too(trained: Checkpoint) -> None:
    data = dataset_of(trained)
    options = SearchOptions(
        uniform=False, num_samples=12, num_final=4, calibration_images=64, generations=3
    )
    first, second = (Search(trained, d, options).run() for d in (data, with_other_test(data)))
    assert [s.arch for s in first.subnets] == [s.arch for s in second.subnets]
    assert first.measured == second.measured
    two = trained.serving(
        (trained.subnets[0], trained.subnets[-1]), trained.norm_statistics, trained.accuracy_source
    )
    int8 = [
        measure_int8(two, d, tolerance=0.01, calibration_images=128)
        for d in (data, with_other_test(data))
    ]
    assert [m.loss for m in int8[0]] == [m.loss for m in int8[1]]
    assert [m.int8 is None for m in int8[0]] == [m.int8 is None for m in int8[1]]


def test_no_uniform_shape_that_is_cheaper_is_more_accurate_where_it_was_chosen(
    trained: Checkpoint,
) -> None:
    options = SearchOptions(num_samples=0, num_final=0, calibration_images=256)
    result = Search(trained, dataset_of(trained), options).run()
    uniforms = set(trained.definition.space.uniforms())
    assert uniforms <= set(result.measured)
    assert result.quality is None
    for served in result.subnets:
        assert served.predicted is None
        assert all(
            result.measured[arch].accuracy <= served.validation
            for arch in uniforms
            if result.measured[arch].cost <= served.cost
        )


def test_the_ladder_alone_can_be_asked_for(trained: Checkpoint) -> None:
    options = SearchOptions(uniform=False, num_samples=0, num_final=0, calibration_images=64)
    result = Search(trained, dataset_of(trained), options).run()
    assert set(result.measured) == set(trained.definition.space.ladder())


def test_each_subnet_is_measured_once_on_test(
    trained: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset_of(trained)
    taken: list[int] = []

    class Counted(Split):
        def take(self, rows, key=None):
            taken.append(len(rows))
            return super().take(rows, key)

    assert isinstance(data.test, Split)
    data = replace(data, test=Counted(data.test.images, data.test.labels))
    task = Search(trained, data, SearchOptions(num_samples=0, num_final=0, calibration_images=64))
    result = task.run()
    comparison = task.compare(result)
    space = trained.definition.space
    measured = {*(s.arch for s in result.subnets), *space.ladder(), *space.uniforms()}
    assert sum(taken) == len(measured) * len(data.test)
    assert comparison.gain.value == comparison.found.value - comparison.ladder.value


def test_half_of_the_test_images_can_choose(trained: Checkpoint) -> None:
    data, halves = dataset_of(trained), dataset_of(trained, choose_on="test")
    assert len(halves.validation) + len(halves.test) == len(data.test)
    assert abs(len(halves.validation) - len(halves.test)) <= 1
    both = [part.take(torch.arange(len(part))).images for part in (halves.validation, halves.test)]
    rows = {image.numpy().tobytes() for image in torch.cat(both)}
    assert isinstance(data.test, Split)
    assert rows == {image.numpy().tobytes() for image in data.test.images}


def finish(parent: Path, **data: object) -> TrainConfig:
    return config_from_json(
        {
            **CONFIG,
            "seed": 1,
            "supernet": {"variant": "resnet_tiny", "weights": str(parent), "origin": "supernet"},
            "data": {"batch_size": 64, **data},
            "schedule": {"epochs": 1, "delay": 0.0, "ramp_epochs": 0.0, "sort_channels": False},
        }
    )


def held_out(checkpoint: Checkpoint) -> set[bytes]:
    data = dataset_of(checkpoint)
    images = data.validation.take(torch.arange(len(data.validation))).images
    return {image.numpy().tobytes() for image in images}


def test_a_run_that_goes_on_holds_out_what_its_parent_did(
    digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_folder = {"name": "folder", "path": str(digits_folder), "validation": 0.25}
    first_config = config_from_json({**CONFIG, "data": {"batch_size": 64, **of_folder}})
    first = train(first_config, tmp_path / "first")
    second = train(finish(tmp_path / "first", **of_folder), tmp_path / "second")
    assert first is not None
    assert second is not None
    assert held_out(first) == held_out(second)
    assert second.provenance["split"] == first.provenance["split"]
    assert second.provenance["config"]["seed"] == 1
    assert second.provenance["config"]["data"]["split_seed"] == 0
    # The same images in another place are the same data, whichever command reads them.
    (tmp_path / "moved").symlink_to(digits_folder)
    again = dataset_of(load_checkpoint(tmp_path / "second"), tmp_path / "moved")
    assert len(again.validation) == len(dataset_of(first).validation)
    third = finish(tmp_path / "second", **{**of_folder, "path": str(tmp_path / "moved")})
    last = train(third, tmp_path / "third")
    assert last is not None
    assert last.provenance["split"] == first.provenance["split"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 0.4}, "data.validation is 0.4, expected 0.25"),
        ({"split_seed": 3}, "data.split_seed is 3, expected 0"),
    ],
)
def test_a_split_that_would_hold_out_what_was_trained_on_is_refused(
    digits_folder: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    of_folder = {"name": "folder", "path": str(digits_folder), "validation": 0.25}
    config = config_from_json({**CONFIG, "data": {"batch_size": 64, **of_folder}})
    train(config, tmp_path / "first")
    with pytest.raises(ValueError, match=message):
        train(finish(tmp_path / "first", **{**of_folder, **changes}), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_the_digits_test_images_stay_what_they_were_too(tmp_path: Path) -> None:
    """All three parts of the digits are drawn by the seed, so another one would mix them."""
    first = train(config_from_json(CONFIG), tmp_path / "first")
    second = train(finish(tmp_path / "first"), tmp_path / "second")
    assert first is not None
    assert second is not None
    tests = [dataset_of(c).test for c in (first, second)]
    assert torch.equal(*(s.take(torch.arange(len(s))).images for s in tests))


@pytest.mark.slow
def test_a_collapsed_run_is_said(
    tmp_path: Path, make_config: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    from training.cli import train as command

    file = tmp_path / "digits.toml"
    file.write_text(
        'supernet.variant = "resnet_tiny"\nthreads = 1\namp = "off"\ndata.batch_size = 128\n'
        "schedule.epochs = 1\nschedule.delay = 0.0\nschedule.ramp_epochs = 0.0\n"
        "evaluation.random_archs = 0\nevaluation.search = 0\noptimizer.lr = 1e-9\n"
    )
    command(config=file, out=tmp_path / "flat", set_=None, resume=False)
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: all subnets measured are at chance" in said
    collapsed = load_checkpoint(tmp_path / "flat").provenance["collapsed"]
    assert "360 held-out samples" in collapsed
    last = json.loads((tmp_path / "flat" / "log.jsonl").read_text().splitlines()[-1])
    assert last["collapsed"] == collapsed
    command(config=file, out=tmp_path / "fine", set_=["optimizer.lr=0.05", "schedule.epochs=12"],
            resume=False)  # fmt: skip
    assert "collapsed" not in load_checkpoint(tmp_path / "fine").provenance
    assert "warning" not in capsys.readouterr().err


def test_one_subnet_trains_alone_and_is_the_one_that_is_watched(
    tmp_path: Path, make_config: Callable[..., TrainConfig]
) -> None:
    """Alone, at the same recipe: what a shape of the supernet is compared with."""
    alone = {"strategy": "single", "subnet": "d=1,w=0.5,e=1", "epochs": 12}
    checkpoint = train(make_config(schedule=alone), tmp_path / "alone")
    assert checkpoint is not None
    arch = checkpoint.definition.space.uniform(depth=1, width=0.5, expand=1.0)
    served = {s.arch: s.accuracy for s in checkpoint.subnets}
    assert served[arch] > 0.6
    assert served[arch] == max(served.values())
    assert "collapsed" not in checkpoint.provenance, "the others are at chance, as they must be"
    with pytest.raises(ValueError, match=r"schedule.subnet is d=1, allowed with .* single"):
        make_config(schedule={"subnet": "d=1"})
