"""What `serve.bench.gpu` measures on: devices, networks, checkpoints with random weights."""

from __future__ import annotations

import gc
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from serve.bench.actuation.six_subnets import ACCURACY, SIX_SUBNETS
from serve.bench.gpu.settings import GpuBenchSettings
from serve.bench.rows import Row, Tell, absent_row, row
from subnetact.cuda.accelerator import Accelerator, HostAccelerator
from subnetact.cuda.cuda_accelerator import CudaAccelerator
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.device import device_name, synchronize
from supernet import (
    Arch,
    Checkpoint,
    InputSpec,
    ServedSubnet,
    SupernetDefinition,
    calibrate,
    cost,
    define_supernet,
    extract,
)

RUN_FOLDER = Path("runs") / "gpu"


@dataclass
class GpuBench:
    """The device, the settings, the time left, the rows so far, and the folder of profiles."""

    device: str
    settings: GpuBenchSettings
    budget_s: float
    tell: Tell
    clock: Callable[[], float] = time.perf_counter
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    keep: Callable[[Sequence[Row]], object] = lambda rows: None
    profiles: Path = RUN_FOLDER

    def __post_init__(self) -> None:
        self._start_s = self.clock()
        self.accelerator = self.new_accelerator()
        self._where = where(self.device)
        self._checkpoints: dict[tuple[str, ...], Checkpoint] = {}

    @property
    def date(self) -> str:
        """The day of the run."""
        return str(self._where["date"])

    @property
    def left_s(self) -> float:
        """Seconds left of the whole run."""
        return self.budget_s - (self.clock() - self._start_s)

    def record(self, figure: str, value: float, unit: str, detail: str) -> None:
        """Keep a figure and say it; `keep` gets all rows so far, so that none is lost."""
        self.rows.append(row(f"gpu/{figure}", value, unit, detail) | self._where)
        self.keep(self.rows)
        self.tell(f"  {figure}: {value:.4g} {unit}")

    def absent(self, figure: str, unit: str, why: str) -> None:
        """Keep a row that has no value here, and why: not measured is not zero."""
        self.rows.append(absent_row(f"gpu/{figure}", unit, why) | self._where)
        self.keep(self.rows)
        self.tell(f"  {figure}: absent, {why}")

    def allocated_bytes(self) -> int | None:
        """Bytes of all tensors on the device now; None on a CPU, which counts no such thing."""
        if self.device != "cuda":
            return None
        gc.collect()
        self.sync()
        return torch.cuda.memory_allocated()

    def checkpoint(self, variant: str, archs: Sequence[Arch]) -> Checkpoint:
        """Return `random_checkpoint`'s, made once: on a CPU that takes as long as a part."""
        key = (variant, *(arch.subnet_id for arch in archs))
        if key not in self._checkpoints:
            self._checkpoints[key] = random_checkpoint(variant, archs, self.device)
        return self._checkpoints[key]

    def executor(
        self,
        checkpoint: Checkpoint,
        *,
        packing: str = "folded",
        dtype: torch.dtype = torch.bfloat16,
        batch_sizes: tuple[int, ...] | None = None,
        budget_bytes: int | None = None,
        graph_budget_bytes: int | None = None,
        accelerator: Accelerator | None = None,
    ) -> CudaExecutor:
        """Make an executor; on a fresh accelerator by default: graphs share no pool with others."""
        ladder = batch_sizes or self.settings.batch_sizes
        with warnings.catch_warnings():
            if budget_bytes is not None:  # small ones are meant: a row says what is fixed
                warnings.simplefilter("ignore", RuntimeWarning)
            return CudaExecutor(
                checkpoint,
                accelerator or self.new_accelerator(),
                packing=packing,
                dtype=dtype,
                max_batch_size=ladder[-1],
                batch_sizes=ladder,
                budget_bytes=budget_bytes,
                graph_budget_bytes=graph_budget_bytes,
            )

    def new_accelerator(self) -> Accelerator:
        """Return a fresh accelerator: what is captured on it shares no pool with others."""
        return CudaAccelerator() if self.device == "cuda" else HostAccelerator()

    def sync(self) -> None:
        """Wait for the device."""
        synchronize(self.device)

    def interleaved(
        self,
        calls: Mapping[str, Callable[[], object]],
        rounds: int | None = None,
        *,
        before: Mapping[str, Callable[[], object]] | None = None,
    ) -> dict[str, list[float]]:
        """Return the seconds of every call per round, in turn, after three that do not count.

        What is to be done `before` a call, by its name, does not count either.
        """
        samples_s: dict[str, list[float]] = {name: [] for name in calls}
        for round_number in range(-3, rounds or self.settings.rounds):
            for name, call in calls.items():
                if before is not None and name in before:
                    before[name]()
                self.sync()
                start_s = time.perf_counter()
                call()
                self.sync()
                if round_number >= 0:
                    samples_s[name].append(time.perf_counter() - start_s)
        return samples_s


def ratio(samples_s: Mapping[str, Sequence[float]], name: str, over: str) -> float:
    """Return the median over rounds of one call's time over another's in the same round."""
    return median(a / b for a, b in zip(samples_s[name], samples_s[over], strict=True))


def brief(samples_s: Mapping[str, Sequence[float]]) -> str:
    """Return medians for people."""
    return ", ".join(f"{name} {median(s) * 1e3:.3f} ms" for name, s in samples_s.items())


def where(device: str) -> dict[str, object]:
    """Return the device, its driver and the versions of what computes."""
    cuda = device == "cuda"
    return {
        "device": device_name(device),
        "driver": _driver() if cuda else "",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version()) if cuda else "",
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def sizes(definition: SupernetDefinition) -> dict[str, Arch]:
    """Return the smallest, a middle and the largest subnet."""
    space = definition.space
    middle = {
        "ofa_resnet50": {"depth": 1, "expand": 0.25, "width": 1, "resolution": 176},
        "ofa_mobilenet_v3": {"depth": 3, "expand": 4, "kernel": 5, "resolution": 176},
    }
    if space.family in middle:
        mid = space.uniform(**middle[space.family])
    else:
        ladder = space.ladder()
        mid = ladder[len(ladder) // 2]
    return {"min": space.smallest, "mid": mid, "max": space.largest}


def six(family: str) -> dict[str, Arch]:
    """Return the six subnets of SUSHI, or up to six of another family's ladder."""
    if family == "ofa_resnet50":
        return dict(SIX_SUBNETS)
    ladder = define_supernet(family).space.ladder()[:6]
    return {str(n): arch for n, arch in enumerate(ladder)}


def random_archs(definition: SupernetDefinition, count: int) -> list[Arch]:
    """Return different random subnets, always the same ones. The space must have so many."""
    rng = np.random.default_rng(0)
    archs: dict[Arch, None] = {}
    while len(archs) < count:
        archs[definition.space.sample(rng)] = None
    return list(archs)


def random_checkpoint(variant: str, archs: Sequence[Arch], device: str) -> Checkpoint:
    """Return a supernet with random weights, always the same; norms are calibrated.

    Without the calibration rounding would explode. Accuracies, up to six, are the published ones
    of SUSHI's six, in the order of `archs`.
    """
    definition = define_supernet(variant)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = definition.build().state_dict()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        state[name] = tensor.detach().clone()
        if name.endswith(("bn.weight", "norm.weight")):
            state[name] = 1 + 0.1 * torch.randn(tensor.shape, generator=generator)
    shape = definition.example_input(archs[-1]).shape
    side = max(arch.resolution for arch in archs)
    spec = InputSpec(
        channels=shape[1], height=side, width=side, mean=(0.5,) * shape[1], std=(0.25,) * shape[1]
    )
    norms: dict[str, Mapping[str, torch.Tensor]] = {}
    subnets: list[ServedSubnet] = []
    accuracies = tuple(ACCURACY.values())
    for n, arch in enumerate(archs):
        subnet = extract(state, definition, arch).to(device)
        x = torch.randn(16, shape[1], arch.resolution, arch.resolution, generator=generator)
        norms[arch.subnet_id] = {k: v.cpu() for k, v in calibrate(subnet, [x.to(device)]).items()}
        accuracy = accuracies[min(n, len(accuracies) - 1)]
        counted = cost(definition, arch)._asdict()
        subnets.append(ServedSubnet(arch=arch, accuracy=accuracy, ci95=(0.0, 1.0), **counted))
    subnets.sort(key=lambda subnet: subnet.macs)
    return Checkpoint(
        name=f"{variant}, random weights",
        definition=definition,
        input=spec,
        state=state,
        norm_statistics=norms,
        subnets=tuple(subnets),
    )


def static_net(checkpoint: Checkpoint, arch: Arch, device: str, dtype: torch.dtype) -> nn.Module:
    """Return the extracted subnet, channels-last, on the device."""
    norms = checkpoint.norm_statistics[arch.subnet_id]
    net = extract(checkpoint.state, checkpoint.definition, arch, norms)
    return net.to(device, dtype).to(memory_format=torch.channels_last)


def static_call(
    checkpoint: Checkpoint, arch: Arch, device: str, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the extracted subnet behind the normalisation that the actuated one has.

    uint8 (B, C, H, W) on the device to float32 logits.
    """
    net = static_net(checkpoint, arch, device, dtype)

    constants = checkpoint.input.constants(device)

    def call(samples: torch.Tensor) -> torch.Tensor:
        x = checkpoint.input.normalise(samples, arch.resolution, constants)
        return net(x.to(dtype, memory_format=torch.channels_last)).float()

    return call


def random_samples(checkpoint: Checkpoint, batch_size: int) -> np.ndarray:
    """Return uint8 (B, C, H, W)."""
    rng = np.random.default_rng(batch_size)
    return checkpoint.sample.noise(batch_size, rng)


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.partition("\n")[0].strip() or "unknown"
