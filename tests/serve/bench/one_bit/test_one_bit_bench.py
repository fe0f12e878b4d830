"""Part onebit: its rows on tiny networks, its rivals, and trainings that go on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from serve.bench.actuation.bench import ActuationBench
from serve.bench.actuation.bench_net import BenchNet
from serve.bench.actuation.random_supernet import random_state
from serve.bench.one_bit import rivals
from serve.bench.one_bit.bench import OneBitBench, OneBitTraining
from serve.bench.one_bit.precision_rows import PRECISIONS, axis_rows, precision_rows
from serve.bench.one_bit.precision_runs import AXES, SIZES, PrecisionRuns
from serve.bench.one_bit.storage_rows import largest_bytes
from subnetact.decoding.linear_forms import has_form
from subnetact.decoding.one_bit_linear import native_kernels
from supernet.definition import define_supernet
from supernet.input import InputSpec
from training.config import TrainConfig, config_from_json


@pytest.fixture(scope="module")
def net() -> BenchNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        definition = define_supernet("resnet_tiny")
        state = random_state(definition)
    return BenchNet(
        name="tiny",
        definition=definition,
        state=state,
        input=InputSpec(channels=1, height=8, width=8, mean=(0.4,), std=(0.2,)),
        sizes={},
        served=tuple(definition.space.ladder()[:2]),
    )


def test_what_is_measured_without_training(net: BenchNet) -> None:
    nets = SimpleNamespace(cifar=net, mobilenet=net, resnet=net)
    bench = ActuationBench(nets, thoroughness=0.0, tell=lambda line: None)
    found = {r["figure"].removeprefix("actuation/onebit/"): r for r in bench.run(["onebit"])}
    assert found["mismatches"]["value"] == 0
    for tokens in (1, 2, 4):
        names = {f.split("/")[-1] for f in found if f.startswith(f"stack/b{tokens}/")}
        assert {"best_int8_over_one_bit", "torch_int8_over_one_bit"} <= names
        own = f"stack/b{tokens}/own_int8_over_one_bit"
        assert (own in found) == (native_kernels() is not None)
    for name in ("tiny", "small_decoder"):
        bits = found[f"storage/{name}/bits_per_low_bit_weight"]["value"]
        assert 1.0 < bits <= 1.1, name
        assert found[f"storage/{name}/bits_per_weight_of_all"]["value"] > bits
    rival = "int8" if has_form("int8") else "float"
    assert found[f"decoder/small/one_bit_over_{rival}"]["value"] > 0
    assert (found["decoder/small/one_bit_over_int8"]["value"] is None) == (rival == "float")
    assert found["convolution/512x7/product_over_int8"]["value"] > 0


@pytest.mark.parametrize("tokens", [1, 3])
def test_rivals_compute_the_layer_that_they_are_made_of(tokens: int) -> None:
    """A rival that computed something else would be beaten for nothing."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(192, 320, generator=generator)
    x = torch.randn(tokens, 320, generator=generator)
    expected = F.linear(x, weight)
    found = rivals.available()
    assert {"one_bit", "torch_int8", "fp32"} <= found.keys()
    for name, make in found.items():
        if name != "one_bit":
            within = 0.15 if name == "torch_int4" else 0.02
            assert (make(weight)(x) - expected).norm() < within * expected.norm(), name


def test_an_inexact_layer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = rivals.one_bit_linear
    assert rivals.mismatches(5) == 0

    def off_by_one_step(table, shape):
        layer = exact(table, shape)
        return lambda x: layer(x) * (1 + 1e-6)

    monkeypatch.setattr(rivals, "one_bit_linear", off_by_one_step)
    assert rivals.mismatches(5) == 5


@pytest.fixture(scope="module")
def tiny_base() -> TrainConfig:
    return config_from_json(
        {
            "name": "tiny",
            "threads": 1,
            "amp": "off",
            "supernet": {"variant": "resnet_tiny"},
            "data": {"batch_size": 128},
            "schedule": {"epochs": 2, "delay": 0.5, "ramp_epochs": 0.5},
            "evaluation": {
                "calibration_images": 128, "random_archs": 0, "search": 0, "uniform": False
            },
        }
    )  # fmt: skip


@pytest.mark.slow
def test_the_table_has_every_precision_and_its_costs(
    tiny_base: TrainConfig, tmp_path: Path
) -> None:
    said: list[str] = []
    runs = PrecisionRuns(tiny_base, tmp_path, tell=said.append)
    rows = precision_rows(runs, seeds=[0], at_least_s=0.0, tell=lambda line: None)
    found = {r["figure"].removeprefix("actuation/onebit/precisions/"): r["value"] for r in rows}
    assert {f.split("/")[0] for f in found} == {*PRECISIONS, "fp32_lost_to_the_axis"}
    for precision in PRECISIONS:
        assert all(0.0 < found[f"{precision}/{size}/accuracy"] <= 1.0 for size in SIZES)
        assert found[f"{precision}/max/b1"] > 0
        accuracy, num_bytes = (found[f"{precision}/max/{w}"] for w in ("accuracy", "bytes"))
        per_kb = found[f"{precision}/max/points_per_kb"]
        assert per_kb == pytest.approx(1e5 * accuracy / num_bytes, rel=1e-3)
    sizes = [found[f"{p}/max/bytes"] for p in ("signed_binary", "ternary", "int8", "fp32")]
    assert sizes == sorted(sizes)
    assert found["binary/max/bytes"] == found["signed_binary/max/bytes"]
    assert len([line for line in said if "training" in line]) == len(AXES)
    again = PrecisionRuns(tiny_base, tmp_path, tell=said.append)
    assert again.accuracies("ternary", 0) == runs.accuracies("ternary", 0)
    assert len([line for line in said if "training" in line]) == len(AXES), "nothing anew"
    assert largest_bytes(runs.checkpoint("none", 0), "fp32") == 4 * sum(
        np.prod(shape) for shape in define_supernet("resnet_tiny").parameter_shapes().values()
    )


def test_what_the_axis_takes_is_paired_by_seed() -> None:
    def of(low: float) -> dict[str, dict[str, float]]:
        return {"fp32": {size: low + i / 10 for i, size in enumerate(SIZES)}}

    measured = {
        "none": [of(0.5), of(0.6), of(0.7)],
        "signed_binary": [of(0.49), of(0.58), of(0.69)],
    }
    rows = axis_rows(measured)
    assert [r["figure"].split("/")[-1] for r in rows] == list(SIZES)
    assert rows[0]["value"] == pytest.approx(0.04 / 3, abs=1e-6)
    low, high = rows[0]["detail"]["ci95"]
    assert low < rows[0]["value"] < high
    assert high - low < 0.03, "pairs differ by a point, seeds by ten"


def test_a_training_of_nothing_is_refused(net: BenchNet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--train needs --data DIR"):
        OneBitBench(net, OneBitTraining(tmp_path, None, None, 1), thoroughness=0.0, tell=print)


def test_a_decoder_s_quality_is_measured_by_width(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler"]
    rng = np.random.default_rng(0)
    text.write_text(" ".join(rng.choice(words, 6000)))
    base = config_from_json(
        {
            "name": "d",
            "threads": 1,
            "amp": "off",
            "supernet": {
                "variant": "decoder_tiny", "overrides": {"vocab_size": 300, "num_tokens": 16}
            },
            "data": {
                "name": "corpus", "path": str(text), "vocabulary": "bpe:300", "size": 16,
                "batch_size": 16, "augment": 0.0,
            },
            "schedule": {"steps": 12, "delay": 0.5, "parts": 1, "random_subnets": 1},
            "optimizer": {"name": "adamw", "lr": 3e-3},
            "loss": {"label_smoothing": 0.0},
        }
    )  # fmt: skip
    runs = PrecisionRuns(base, tmp_path / "runs", tell=lambda line: None)
    plain, signed = (runs.accuracies(axis, 0) for axis in ("none", "signed_binary"))
    largest = list(plain["fp32/quality"])[-1]
    assert plain["fp32/quality"][largest] == 1.0
    assert 0.9 < plain["int8/quality"][largest] <= 1.0
    assert 0.0 < signed["signed_binary/quality"][largest] < 1.0
    assert signed["signed_binary/perplexity"][largest] > 1.0
    made = runs.checkpoint("signed_binary", 0)
    assert [s.subnet_id for s in made.low_bit_subnets] == [
        f"{s.subnet_id}-sb" for s in made.subnets
    ]
