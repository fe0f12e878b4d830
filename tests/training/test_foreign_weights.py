"""Training from other people's weights: other classes, and the input that they expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image

from supernet import Checkpoint, load_checkpoint
from training.config import config_from_json
from training.data.checkpoint_data import dataset_of
from training.data.image_files import ImageFiles
from training.run import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in colour, dark: far from any published mean."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label, name in enumerate("abc"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 40, (36, 48, 3), dtype=np.uint8)
                pixels[..., label] += 60
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def config_of(folder: Path, variant: str, weights: Path | str, origin: str, **overrides: Any):
    return config_from_json(
        {
            "threads": 1,
            "amp": "off",
            "supernet": {
                "variant": variant,
                "weights": str(weights),
                "origin": origin,
                "overrides": {"num_classes": 3, **overrides},
            },
            "data": {
                "name": "images", "path": str(folder), "size": 32, "batch_size": 6,
                "augment": 0.0, "validation": 0.25,
            },
            "schedule": {"steps": 2, "delay": 0.0, "ramp_epochs": 0.0, "parts": 1,
                         "random_subnets": 0},
            "optimizer": {"lr": 1e-3},
            "evaluation": {"random_archs": 0, "search": 0, "calibration_images": 12},
        }
    )  # fmt: skip


def trained(config: Any, out: Path) -> Checkpoint:
    checkpoint = train(config, out)
    assert checkpoint is not None
    return checkpoint


@pytest.mark.parametrize(
    ("origin", "name", "mean", "crop", "interpolation"),
    [
        ("timm", "resnet18", 0.485, 0.95, "bicubic"),
        ("timm", "mobilenetv3_small_100", 0.485, 0.875, "bicubic"),
        ("torchvision", "resnet18", 0.485, 0.875, "bilinear"),
    ],
)
def test_published_weights_train_on_other_classes_and_on_their_own_input(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    origin: str, name: str, mean: float, crop: float, interpolation: str,
) -> None:  # fmt: skip
    """With 1,000 classes, as they are published; drawn, since nothing can be fetched here."""
    torch.manual_seed(0)
    published = timm.create_model if origin == "timm" else torchvision.models.get_model
    net = published(name)
    monkeypatch.setattr(
        "supernet.weights.import_weights._read", lambda source, published_by: net.state_dict()
    )
    resolutions = {"resolution": 32} if "mobile" not in name else {"resolutions": [32]}
    checkpoint = trained(config_of(folder, name, name, origin, **resolutions), tmp_path / "out")
    assert checkpoint.num_classes == 3
    spec = load_checkpoint(tmp_path / "out").input
    assert spec.mean[0] == mean, "what the weights expect, not the mean of dark pictures"
    assert (spec.crop, spec.interpolation) == (pytest.approx(crop), interpolation)
    assert (spec.height, spec.width) == (32, 32)
    # The body is theirs (two small steps away), the classifier is new.
    stem = "conv1.weight" if name == "resnet18" else "stem.conv.weight"
    theirs = net.state_dict()["conv1.weight" if name == "resnet18" else "conv_stem.weight"]
    assert torch.allclose(checkpoint.state[stem].sort(0)[0], theirs.sort(0)[0], atol=0.02)
    files = dataset_of(checkpoint).test
    assert isinstance(files, ImageFiles)
    assert (files.crop, files.interpolation) == (pytest.approx(crop), interpolation)


def test_ones_own_file_trains_too_and_its_input_is_inherited(folder: Path, tmp_path: Path) -> None:
    net = timm.create_model("resnet18", num_classes=11)
    torch.save({"state_dict": {f"model.{n}": t for n, t in net.state_dict().items()}},
               tmp_path / "my.pth")  # fmt: skip
    config = config_of(folder, "resnet18", tmp_path / "my.pth", "timm", resolution=32)
    first = trained(config, tmp_path / "first")
    assert first.input.mean == (0.485, 0.456, 0.406)
    again = config_of(folder, "resnet18", tmp_path / "first", "supernet", resolution=32)
    second = trained(again, tmp_path / "second")
    assert second.input == first.input


def test_the_crop_and_the_resize_are_what_the_weights_expect(folder: Path) -> None:
    from supernet.input import InputSpec
    from training.config import DataConfig
    from training.data.data import load_dataset

    data = load_dataset(DataConfig(name="images", path=str(folder), size=36, validation=0.25))
    whole = InputSpec(channels=3, height=36, width=36, mean=(0.5,) * 3, std=(0.5,) * 3, crop=1.0)
    read = data.read_for(whole)
    assert isinstance(data.test, ImageFiles)
    (picture,) = read.test.take(torch.tensor([0])).images
    with Image.open(data.test.paths[0]) as image:
        expected = np.asarray(image)[:, 6:42]  # all of the shorter side, pixel by pixel
    assert np.array_equal(picture.permute(1, 2, 0).numpy(), expected)
    assert not torch.equal(picture, data.test.take(torch.tensor([0])).images[0])


def test_weights_of_another_kind_of_input_are_refused(tmp_path: Path) -> None:
    net = timm.create_model("resnet18", num_classes=10)
    torch.save(net.state_dict(), tmp_path / "my.pth")
    config = config_from_json(
        {
            "supernet": {"variant": "resnet18", "weights": str(tmp_path / "my.pth"),
                         "origin": "timm", "overrides": {"num_classes": 10}},
            "data": {"batch_size": 64},
        }
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"takes 3 channels, data set digits has 1"):
        train(config, tmp_path / "out")
