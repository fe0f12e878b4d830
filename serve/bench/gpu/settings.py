"""`GpuBenchSettings`: on what `serve.bench.gpu` runs; `FULL` for a device, `TINY` for a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class TrainingCase(NamedTuple):
    """A supernet to train on random pictures; the first steps of `steps` do not count."""

    variant: str
    batch_size: int
    steps: int


class TrafficSettings(NamedTuple):
    """The trace of part `trace`: seconds of it for each policy, and the most requests a second.

    One process sends, schedules and launches: beyond that rate requests have several samples.
    """

    duration_s: float
    most_qps: float


@dataclass(frozen=True)
class GpuBenchSettings:
    """What is run; `TINY` on a CPU has every line executed within a minute.

    At `random_counts` subnets memory is read, SuperServe's 500 among them.
    """

    nets: Mapping[str, str]
    batch_sizes: tuple[int, ...]
    rounds: int
    stream_length: int
    switches: int
    compiled_batch_sizes: tuple[int, ...]
    six_family: str
    random_counts: tuple[int, ...]
    compile_backend: str
    compile_modes: tuple[str, ...]
    decoders: tuple[str, ...]
    decode_counts: tuple[int, ...]
    decode_contexts: tuple[int, ...]
    trainings: tuple[TrainingCase, ...]
    traffic: TrafficSettings
    shares: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)


FULL = GpuBenchSettings(
    nets={"ofa_resnet50": "ofa_resnet50", "ofa_mobilenet_v3": "ofa_mobilenet_v3_w1.0"},
    batch_sizes=(1, 8, 64),
    rounds=30,
    stream_length=400,
    switches=20_000,
    compiled_batch_sizes=(1, 8, 64),
    six_family="ofa_resnet50",
    random_counts=(20, 500),
    compile_backend="inductor",
    compile_modes=("default", "reduce-overhead"),
    decoders=("smollm2_135m",),
    decode_counts=(1, 8, 32),
    decode_contexts=(128, 1024),
    trainings=(TrainingCase("ofa_resnet50", 128, 16), TrainingCase("resnet20_cifar", 128, 40)),
    traffic=TrafficSettings(duration_s=6.0, most_qps=600.0),
)
TINY = GpuBenchSettings(
    nets={"resnet_tiny": "resnet_tiny"},
    batch_sizes=(1, 2),
    rounds=2,
    stream_length=12,
    switches=50,
    compiled_batch_sizes=(1,),
    six_family="resnet_tiny",
    random_counts=(4, 8),
    compile_backend="eager",
    compile_modes=("default", "reduce-overhead"),
    decoders=("decoder_tiny",),
    decode_counts=(1, 2),
    decode_contexts=(64,),
    trainings=(TrainingCase("resnet_tiny", 12, 6),),
    traffic=TrafficSettings(duration_s=0.5, most_qps=150.0),
    shares=(0.4, 1.0),
)
