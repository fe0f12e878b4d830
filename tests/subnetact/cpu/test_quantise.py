"""int8 graphs: near their float twins, in every number format, on integer kernels."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from subnetact.cpu.activation_ranges import (
    Activation,
    activation_ranges,
    ranges_from_tensors,
    ranges_to_tensors,
)
from subnetact.cpu.graph_template import write_template
from subnetact.cpu.ort_session import OrtSession
from subnetact.cpu.quantise import quantise
from subnetact.cpu.rounding_plan import RoundingPlan
from subnetact.cpu.subnet_graph import subnet_graph
from subnetact.number_format import S8S8, U8S7, U8S8, best_format
from supernet.definition import define_supernet
from supernet.input import InputSpec
from supernet.subnets.calibrate import calibrate
from supernet.subnets.extract import extract

_SPEC = InputSpec(channels=3, height=32, width=32, mean=(0.4, 0.5, 0.3), std=(0.2, 0.25, 0.3))
_NETS = {
    "resnet": ("resnet20_cifar", {}),
    "mobilenet": ("ofa_mobilenet_v3_w1.0", {"resolutions": (32,), "num_classes": 10}),
    "efficientnet_lite": ("tf_efficientnet_lite0", {"resolutions": (32,), "num_classes": 10}),
    "vit": (
        "vit_tiny_patch16_224",
        {
            "resolution": 32,
            "patch_size": 8,
            "width": 48,
            "depth": 2,
            "depth_choices": (1, 2),
            "num_classes": 10,
        },
    ),
}


def _images(count: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 4)).astype(np.float32)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(coarse), size=(32, 32), mode="bilinear"
    )
    return resized.numpy().astype(np.uint8)


def _float_graph(name: str, overrides: dict, samples: np.ndarray) -> onnx.ModelProto:
    torch.manual_seed(0)
    definition = define_supernet(name, **overrides)
    state = definition.build().state_dict()
    arch = definition.space.smallest
    x = _SPEC.normalise(torch.from_numpy(samples), arch.resolution)
    statistics = calibrate(extract(state, definition, arch), [x])
    template = write_template(definition, _SPEC, arch)
    return subnet_graph(template, definition, arch, state, statistics)


def _run(model: onnx.ModelProto, samples: np.ndarray, tmp_path) -> tuple[np.ndarray, Counter]:
    onnx.save(model, tmp_path / "m.onnx")
    session = OrtSession(tmp_path / "m.onnx", save_optimised=tmp_path / "o.onnx")
    kernels = Counter(node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node)
    return session.run(samples), kernels


def _noise(answered: np.ndarray, expected: np.ndarray) -> float:
    """Size of the deviation over that of what tells the samples apart."""
    told_apart = expected - expected.mean(axis=0)
    return float(np.linalg.norm(answered - expected) / np.linalg.norm(told_apart))


class _Reader(CalibrationDataReader):
    """What the library's calibrator reads."""

    def __init__(self, samples: np.ndarray):
        self._batches = iter([{"samples": samples}])

    def get_next(self):
        return next(self._batches, None)


def _by_the_library(model: onnx.ModelProto, samples: np.ndarray, tmp_path) -> onnx.ModelProto:
    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(
        str(tmp_path / "float.onnx"),
        str(tmp_path / "int8.onnx"),
        _Reader(samples),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return onnx.load(tmp_path / "int8.onnx")


@pytest.mark.parametrize("net", _NETS)
def test_an_int8_graph_is_nearer_its_float_twin_than_the_library_s(net, tmp_path):
    """Random networks amplify what is rounded, so the library's own rounding is the measure."""
    samples = _images(32)
    model = _float_graph(*_NETS[net], samples)
    ranges = activation_ranges(model, [samples[:16], samples[16:]])
    expected, _ = _run(model, samples, tmp_path)
    library, _ = _run(_by_the_library(model, samples, tmp_path), samples, tmp_path)
    noise = {}
    for number_format in (U8S8, U8S7, S8S8):
        answered, kernels = _run(quantise(model, ranges, number_format), samples, tmp_path)
        noise[number_format.name] = _noise(answered, expected)
        if net != "vit" and number_format.unsigned:  # x86 computes on unsigned bytes only
            convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
            assert kernels["QLinearConv"] == convolutions, "a convolution was left in float"
            assert kernels["HardSwish"] == 0
    own = noise[best_format().name]  # without VNNI bytes of eight bits saturate, the library's too
    assert 0 < own < _noise(library, expected)
    if best_format() == U8S8:
        assert max(noise["u8s7"], noise["s8s8"]) < 1.5 * own


def test_bias_correction_takes_the_mean_error_out(tmp_path):
    samples = _images(64)
    model = _float_graph(*_NETS["resnet"], samples)
    ranges = activation_ranges(model, [samples])
    without = {name: a._replace(means=(0.0,) * len(a.means)) for name, a in ranges.items()}
    expected, _ = _run(model, samples, tmp_path)
    coarse = U8S8._replace(weight_limit=15)  # where there is something to correct
    corrected, _ = _run(quantise(model, ranges, coarse), samples, tmp_path)
    plain, _ = _run(quantise(model, without, coarse), samples, tmp_path)
    shifts = [np.linalg.norm((y - expected).mean(axis=0)) for y in (corrected, plain)]
    assert shifts[0] < 0.7 * shifts[1]


def test_ranges_hold_extremes_and_means_of_all_batches(tmp_path):
    samples = _images(6)
    model = _float_graph(*_NETS["resnet"], samples)
    ranges = activation_ranges(model, [samples[:4], samples[4:]])
    first = next(iter(ranges))
    x = _SPEC.normalise(torch.from_numpy(samples), 32).numpy()
    assert ranges[first].low == pytest.approx(x.min(), rel=1e-5)
    assert ranges[first].high == pytest.approx(x.max(), rel=1e-5)
    assert ranges[first].means == pytest.approx(x.mean(axis=(0, 2, 3)), rel=1e-4)
    kept = ranges_from_tensors(ranges_to_tensors(ranges))
    assert list(kept) == list(ranges)
    assert kept[first].means == pytest.approx(ranges[first].means, rel=1e-6)
    assert kept[first][:2] == pytest.approx(ranges[first][:2], rel=1e-6)


def test_faulty_ranges_are_named():
    samples = _images(2)
    model = _float_graph(*_NETS["resnet"], samples)
    with pytest.raises(ValueError, match="at least one batch"):
        activation_ranges(model, [])
    name, *_ = RoundingPlan(model).rounded
    with pytest.raises(ValueError, match=f"no range of {name}"):
        quantise(model, {})


def test_zero_is_exact_and_a_dead_tensor_is_no_division_by_zero():
    from subnetact.cpu.quantise import _scale

    for number_format in (U8S8, S8S8):
        for low, high in ((-1.3, 2.9), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)):
            scale, zero = _scale(Activation(low, high), number_format)
            bottom, top = (0, 255) if number_format.unsigned else (-128, 127)
            assert bottom <= zero <= top
            assert scale > 0


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("x86_64", ["avx2", "avx512_vnni"], "u8s8"),
        ("AMD64", ["avx_vnni"], "u8s8"),
        ("x86_64", ["avx2", "avx512f"], "u8s7"),
        ("aarch64", ["asimddp"], "s8s8"),
        ("arm64", [], "s8s8"),
    ],
)
def test_the_number_format_follows_the_processor(machine, flags, name):
    assert best_format(machine, flags).name == name
