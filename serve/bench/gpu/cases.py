"""What `serve.bench.gpu` measures on: devices, networks, checkpoints with random weights."""

from __future__ import annotations

import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median

import numpy as np
import torch
from torch import nn

from serve.bench.actuation.six_subnets import ACCURACY, SIX_SUBNETS
from serve.bench.rows import Row, Tell, row
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


@dataclass(frozen=True)
class GpuBenchSettings:
    """What is run; `TINY` on a CPU has every line executed within seconds."""

    nets: Mapping[str, str]
    batch_sizes: tuple[int, ...]
    rounds: int
    stream_length: int
    switches: int
    compiled_batch_sizes: tuple[int, ...]
    six_family: str
    compile_backend: str
    decoders: tuple[str, ...]
    decode_counts: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    shares: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)


FULL = GpuBenchSettings(
    nets={"ofa_resnet50": "ofa_resnet50", "ofa_mobilenet_v3": "ofa_mobilenet_v3_w1.0"},
    batch_sizes=(1, 8, 64),
    rounds=30,
    stream_length=400,
    switches=20_000,
    compiled_batch_sizes=(1, 8, 64),
    six_family="ofa_resnet50",
    compile_backend="inductor",
    decoders=("smollm2_135m",),
    decode_counts=(1, 8, 32),
    decode_contexts=(128, 1024),
)
TINY = GpuBenchSettings(
    nets={"resnet_tiny": "resnet_tiny"},
    batch_sizes=(1, 2),
    rounds=2,
    stream_length=12,
    switches=50,
    compiled_batch_sizes=(1,),
    six_family="resnet_tiny",
    compile_backend="eager",
    decoders=("decoder_tiny",),
    decode_counts=(1, 2),
    decode_contexts=(64,),
    shares=(0.4, 1.0),
)


@dataclass
class GpuBench:
    """The device, the settings, the time left, and the rows so far."""

    device: str
    settings: GpuBenchSettings
    budget_s: float
    tell: Tell
    clock: Callable[[], float] = time.perf_counter
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    keep: Callable[[Sequence[Row]], object] = lambda rows: None

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
        self, calls: Mapping[str, Callable[[], object]], rounds: int | None = None
    ) -> dict[str, list[float]]:
        """Return the seconds of every call per round, in turn, after three that do not count."""
        samples_s: dict[str, list[float]] = {name: [] for name in calls}
        for round_number in range(-3, rounds or self.settings.rounds):
            for name, call in calls.items():
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


def random_checkpoint(variant: str, archs: Sequence[Arch], device: str) -> Checkpoint:
    """Return a supernet with random weights; norms are calibrated, else rounding explodes.

    Six subnets get the published accuracies of SUSHI's six: the profile is of those.
    """
    definition = define_supernet(variant)
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in definition.build().state_dict().items():
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
    for n, arch in enumerate(archs):
        subnet = extract(state, definition, arch).to(device)
        x = torch.randn(16, shape[1], arch.resolution, arch.resolution, generator=generator)
        norms[arch.subnet_id] = {k: v.cpu() for k, v in calibrate(subnet, [x.to(device)]).items()}
        accuracy = tuple(ACCURACY.values())[n] if len(archs) == len(ACCURACY) else 0.5
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
    return answer.stdout.splitlines()[0].strip()
