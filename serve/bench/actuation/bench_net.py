"""`BenchNet`: a supernet that is measured, and checkpoints of whatever subnets a part wants.

Time does not depend on the values of weights or on what int8 rounds by, as long as these are those
of a network whose activations neither vanish nor overflow. So weights and images may be random;
norm statistics and ranges are taken on the images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from serve.bench.actuation.graph_case import GraphCase
from serve.bench.actuation.random_supernet import random_state
from serve.bench.actuation.six_subnets import ACCURACY, SIX_SUBNETS
from subnetact.cpu.activation_ranges import activation_ranges, ranges_to_tensors
from subnetact.cpu.subnet_sessions import SubnetSessions
from supernet.arch import Arch
from supernet.checkpoint import Checkpoint, ServedSubnet, load_checkpoint, save_checkpoint
from supernet.definition import SupernetDefinition, define_supernet
from supernet.input import InputSpec
from supernet.served_form import ServedForm
from supernet.subnets.calibrate import calibrate
from supernet.subnets.cost import cost
from supernet.subnets.extract import extract

CIFAR_FOLDER = Path(__file__).parents[3] / "models" / "cifar10_resnet20"
_IMAGES = 4
_MADE_UP, _MADE_UP_ACCURACY = "made up, for a benchmark", 0.5
_INT8_LOSS = 0.003
_IMAGENET = InputSpec(
    channels=3, height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


@dataclass(frozen=True, kw_only=True)
class BenchNet:
    """A supernet, three sizes of it by name, and the subnets that it serves.

    `norm_statistics` may be empty: what is missing is calibrated when it is asked for, and kept.
    `accuracies` are those of other weights, by subnet id; without them all have one that is made
    up. int8 is given 0.3 points less, the most that `supernet precision` lets it lose.
    """

    name: str
    definition: SupernetDefinition
    state: Mapping[str, torch.Tensor]
    input: InputSpec
    sizes: Mapping[str, Arch]
    served: tuple[Arch, ...]
    norm_statistics: dict[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    accuracies: Mapping[str, float] = field(default_factory=dict)

    @property
    def images(self) -> np.ndarray:
        """Random images, uint8 (4, C, H, W), always the same."""
        shape = (_IMAGES, *self.input.shape)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def case(self, size: str) -> GraphCase:
        """Return one size as a case of the graph part."""
        arch = self.sizes[size]
        return GraphCase(
            self.name,
            size,
            self.definition,
            arch,
            self.state,
            self.statistics_of(arch),
            self.input,
            self.images,
        )

    def statistics_of(self, arch: Arch) -> Mapping[str, torch.Tensor]:
        """Return a subnet's norm statistics."""
        if arch.subnet_id not in self.norm_statistics:
            net = extract(self.state, self.definition, arch)
            x = self.input.normalise(torch.from_numpy(self.images), arch.resolution)
            self.norm_statistics[arch.subnet_id] = calibrate(net, [x])
        return self.norm_statistics[arch.subnet_id]

    def archs(self, count: int) -> tuple[Arch, ...]:
        """Return `count` different subnets: those served, then the sizes, then random ones."""
        chosen = {arch.subnet_id: arch for arch in (*self.served, *self.sizes.values())}
        rng = np.random.default_rng(0)
        while len(chosen) < count:
            arch = self.definition.space.sample(rng)
            chosen[arch.subnet_id] = arch
        return tuple(chosen.values())[:count]

    def checkpoint(self, archs: Iterable[Arch]) -> Checkpoint:
        """Return a checkpoint of the subnets in fp32 and int8; accuracies are made up."""
        subnets = sorted(map(self._subnet, archs), key=lambda s: (s.macs, s.subnet_id))
        floats = Checkpoint(
            name=self.name,
            definition=self.definition,
            input=self.input,
            state=self.state,
            norm_statistics={s.subnet_id: self.statistics_of(s.arch) for s in subnets},
            subnets=tuple(subnets),
            accuracy_source="published, of other weights" if self.accuracies else _MADE_UP,
        )
        sessions = SubnetSessions(floats)
        ranges = {
            s.subnet_id: activation_ranges(sessions.graph(ServedForm(s.subnet_id)), [self.images])
            for s in subnets
        }
        return replace(
            floats,
            int8_subnets=tuple(
                replace(s, precision="int8", accuracy=s.accuracy - _INT8_LOSS) for s in subnets
            ),
            activation_ranges={i: ranges_to_tensors(own) for i, own in ranges.items()},
        )

    def saved(self, archs: Iterable[Arch], folder: Path) -> Path:
        """Write that checkpoint unless it is there, and return its folder, a child of `folder`."""
        wanted = tuple(archs)
        path = folder / f"{self.name}-{len(wanted)}"
        if not path.exists():
            save_checkpoint(self.checkpoint(wanted), path)
        return path

    def _subnet(self, arch: Arch) -> ServedSubnet:
        spent = cost(self.definition, arch)
        return ServedSubnet(
            arch=arch,
            accuracy=self.accuracies.get(arch.subnet_id, _MADE_UP_ACCURACY),
            ci95=(0.0, 1.0),
            macs=spent.macs,
            params=spent.params,
        )


def cifar10_resnet20(folder: Path = CIFAR_FOLDER) -> BenchNet:
    """Return the released CIFAR-10 supernet; sizes are its smallest, middle and largest subnet.

    Raises CheckpointError where the folder is not there.
    """
    loaded = load_checkpoint(folder)
    archs = tuple(subnet.arch for subnet in loaded.subnets)
    return BenchNet(
        name="cifar10_resnet20",
        definition=loaded.definition,
        state=loaded.state,
        input=loaded.input,
        sizes={"min": archs[0], "mid": archs[len(archs) // 2], "max": archs[-1]},
        served=archs,
        norm_statistics=dict(loaded.norm_statistics),
    )


def ofa_mobilenet_v3() -> BenchNet:
    """Return OFA-MobileNetV3 with random weights; it serves three sizes."""
    definition = define_supernet("ofa_mobilenet_v3_w1.0")
    space = definition.space
    middle = space.uniform(depth=3, expand=4, kernel=5, resolution=176)
    sizes = {"min": space.smallest, "mid": middle, "max": space.largest}
    return _random("ofa_mobilenet_v3", definition, sizes, tuple(sizes.values()))


def ofa_resnet50() -> BenchNet:
    """Return OFA-ResNet50 with random weights; it serves SUSHI's six subnets.

    Their accuracies are those that OFA published.
    """
    definition = define_supernet("ofa_resnet50")
    space = definition.space
    middle = space.uniform(depth=1, expand=0.25, width=1, resolution=176)
    sizes = {"min": space.smallest, "mid": middle, "max": space.largest}
    accuracies = {arch.subnet_id: ACCURACY[name] for name, arch in SIX_SUBNETS.items()}
    net = _random("ofa_resnet50", definition, sizes, tuple(SIX_SUBNETS.values()))
    return replace(net, accuracies=accuracies)


def _random(
    name: str,
    definition: SupernetDefinition,
    sizes: Mapping[str, Arch],
    served: tuple[Arch, ...],
) -> BenchNet:
    return BenchNet(
        name=name,
        definition=definition,
        state=random_state(definition),
        input=_IMAGENET,
        sizes=sizes,
        served=served,
    )
