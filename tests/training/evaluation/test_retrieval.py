"""Embeddings: neighbours by cosine, and subnets measured by those of the largest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet import define_supernet, load_checkpoint, save_checkpoint
from supernet.input import InputSpec
from supernet.weights.import_network import imported_checkpoint
from training.commands.calibrate_command import recalibrated
from training.data.array_folder import ArraySplit, write_array_folder
from training.data.checkpoint_data import dataset_of
from training.data.samples import Split
from training.evaluation.retrieval import nearest_neighbours

PLAIN = InputSpec(channels=3, height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_neighbours_are_those_of_largest_cosine_but_oneself() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 255, (70, 3, 8, 8), dtype=torch.uint8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16)).eval()
    with torch.no_grad():
        embeddings = F.normalize(net(PLAIN.normalise(images, 8)), dim=1)
    expected = [
        max(
            (j for j in range(70) if j != i),
            key=lambda j, i=i: float(embeddings[i] @ embeddings[j]),
        )
        for i in range(70)
    ]
    split = Split(images, torch.zeros(70, dtype=torch.long))
    assert nearest_neighbours(net, split, PLAIN, 8).tolist() == expected
    with pytest.raises(ValueError, match="among 2 samples, at least 3"):
        nearest_neighbours(net, Split(images[:2], torch.zeros(2)), PLAIN, 8)


def test_a_tower_without_classes_is_calibrated_by_its_neighbours(tmp_path) -> None:
    """Served are subnets whose neighbours agree with the largest's, which agrees with itself."""
    rng = np.random.default_rng(0)

    def split(count: int) -> ArraySplit:
        images = rng.integers(0, 255, (count, 3, 28, 28)).astype(np.uint8)
        return ArraySplit(images, np.zeros(count, dtype=np.int64))

    write_array_folder(tmp_path / "images", split(80), split(60), ("anything",))
    definition = define_supernet(
        "vit_small_patch14_dinov2", resolution=28, width=48, num_heads=3, heads_choices=(1, 2, 3),
        depth=4, depth_choices=(2, 3, 4),
    )  # fmt: skip
    torch.manual_seed(0)
    state = definition.build().state_dict()
    imported = imported_checkpoint(definition, state, name="tower", origin="timm")
    save_checkpoint(imported, tmp_path / "tower")
    tower = load_checkpoint(tmp_path / "tower")
    assert tower.num_classes == 48
    space = definition.space
    done, _ = recalibrated(
        tower, dataset_of(tower, tmp_path / "images"), [space.smallest, space.largest],
        images=16, keep_statistics=False, min_accuracy=0.0,
    )  # fmt: skip
    assert done.subnets[-1].arch == space.largest
    assert done.subnets[-1].accuracy == 1.0
    assert 0.0 < done.subnets[0].accuracy < 1.0
    assert done.accuracy_source.startswith("nearest neighbours that agree with the largest's")
