"""Official OFA files, emulated: names and counts written down from the published classes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from supernet import SupernetDefinition, define_supernet, extract
from supernet.weights.import_weights import import_state
from supernet.weights.naming import State, find_naming
from supernet.weights.ofa_files import to_elastic
from supernet.weights.weight_files import WeightsError

Shapes = dict[str, tuple[int, ...]]
BN = ("weight", "bias", "running_mean", "running_var")


def conv_bn(prefix: str, shape: tuple[int, ...], nested: bool) -> Shapes:
    conv, bn = (".conv.conv", ".bn.bn") if nested else (".conv", ".bn")
    vectors: Shapes = {f"{prefix}{bn}.{vector}": shape[:1] for vector in BN}
    return {
        f"{prefix}{conv}.weight": shape,
        **vectors,
        f"{prefix}{bn}.num_batches_tracked": (),
    }


def mb_block(i: int, sizes: tuple[int, int, int], has_se: bool, elastic: bool, part: str) -> Shapes:
    cin, mid, cout = sizes
    block = f"blocks.{i}.{part}"
    shapes = conv_bn(f"{block}.inverted_bottleneck", (mid, cin, 1, 1), elastic)
    shapes |= conv_bn(f"{block}.depth_conv", (mid, 1, 7, 7), elastic)
    shapes |= conv_bn(f"{block}.point_linear", (cout, mid, 1, 1), elastic)
    if elastic:
        shapes[f"{block}.depth_conv.conv.7to5_matrix"] = (25, 25)
        shapes[f"{block}.depth_conv.conv.5to3_matrix"] = (9, 9)
    if has_se:
        hidden = (mid // 4 + 4) // 8 * 8
        fc = f"{block}.depth_conv.se.fc"
        shapes |= {f"{fc}.reduce.weight": (hidden, mid, 1, 1), f"{fc}.reduce.bias": (hidden,)}
        shapes |= {f"{fc}.expand.weight": (mid, hidden, 1, 1), f"{fc}.expand.bias": (mid,)}
    return shapes


def mobilenet_v3(elastic: bool = True, part: str = "mobile_inverted_conv") -> Shapes:
    shapes = conv_bn("first_conv", (16, 3, 3, 3), False)
    shapes |= conv_bn(f"blocks.0.{part}.depth_conv", (16, 1, 3, 3), False)
    shapes |= conv_bn(f"blocks.0.{part}.point_linear", (16, 16, 1, 1), False)
    cin = 16
    for stage, cout in enumerate((24, 40, 80, 112, 160)):
        for i in range(4):
            sizes = (cin, 6 * cin, cout)
            shapes |= mb_block(4 * stage + i + 1, sizes, stage in (1, 3, 4), elastic, part)
            cin = cout
    shapes |= conv_bn("final_expand_layer", (960, 160, 1, 1), False)
    shapes["feature_mix_layer.conv.weight"] = (1280, 960, 1, 1)
    return shapes | {"classifier.linear.weight": (7, 1280), "classifier.linear.bias": (7,)}


def proxyless(elastic: bool = True, part: str = "mobile_inverted_conv") -> Shapes:
    shapes = conv_bn("first_conv", (40, 3, 3, 3), False)
    shapes |= conv_bn(f"blocks.0.{part}.depth_conv", (40, 1, 3, 3), False)
    shapes |= conv_bn(f"blocks.0.{part}.point_linear", (24, 40, 1, 1), False)
    cin, i = 24, 1
    for cout, depth in ((32, 4), (56, 4), (104, 4), (128, 4), (248, 4), (416, 1)):
        for _ in range(depth):
            mid = (6 * cin + 4) // 8 * 8
            shapes |= mb_block(i, (cin, mid, cout), False, elastic, part)
            cin, i = cout, i + 1
    shapes |= conv_bn("feature_mix_layer", (1664, 416, 1, 1), False)
    return shapes | {"classifier.linear.weight": (7, 1664), "classifier.linear.bias": (7,)}


def resnet50(elastic: bool = True) -> Shapes:
    shapes = conv_bn("input_stem.0", (32, 3, 3, 3), elastic)
    shapes |= conv_bn("input_stem.1.conv", (32, 32, 3, 3), elastic)
    shapes |= conv_bn("input_stem.2", (64, 32, 3, 3), elastic)
    cin, i = 64, 0
    for cout, mid, depth in ((256, 88, 4), (512, 176, 4), (1024, 360, 6), (2048, 720, 4)):
        for n in range(depth):
            block = f"blocks.{i}"
            shapes |= conv_bn(f"{block}.conv1", (mid, cin, 1, 1), elastic)
            shapes |= conv_bn(f"{block}.conv2", (mid, mid, 3, 3), elastic)
            shapes |= conv_bn(f"{block}.conv3", (cout, mid, 1, 1), elastic)
            if n == 0:
                shapes |= conv_bn(f"{block}.downsample", (cout, cin, 1, 1), elastic)
            cin, i = cout, i + 1
    linear = "classifier.linear.linear" if elastic else "classifier.linear"
    return shapes | {f"{linear}.weight": (7, 2048), f"{linear}.bias": (7,)}


def drawn(shapes: Shapes) -> State:
    generator = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in shapes.items():
            if name.endswith("num_batches_tracked"):
                yield name, torch.tensor(3)
            elif name.endswith("_matrix"):
                noise = torch.randn(shape, generator=generator)
                yield name, torch.eye(shape[0]) + 0.1 * noise
            elif name.endswith("running_var"):
                yield name, torch.rand(shape, generator=generator) + 0.5
            else:
                yield name, torch.randn(shape, generator=generator) * 0.1

    return dict(tensors())


FILES = [
    ("ofa_mobilenet_v3_w1.0", mobilenet_v3(), 475),
    ("ofa_mobilenet_v3_w1.0", mobilenet_v3(part="conv"), 475),
    ("ofa_mobilenet_v3_w1.0", mobilenet_v3(elastic=False), 435),
    ("ofa_proxyless_w1.3", proxyless(), 446),
    ("ofa_proxyless_w1.3", proxyless(elastic=False, part="conv"), 404),
    ("ofa_resnet50", resnet50(), 368),
    ("ofa_resnet50", resnet50(elastic=False), 368),
]


def define(name: str) -> SupernetDefinition:
    return define_supernet(name, num_classes=7)


@pytest.mark.parametrize(("name", "shapes", "num_keys"), FILES)
def test_an_official_file_round_trips(name: str, shapes: Shapes, num_keys: int) -> None:
    assert len(shapes) == num_keys
    definition = define(name)
    naming = find_naming("ofa", definition.family_name)
    file = drawn(shapes)
    state = import_state(file, definition, naming)
    is_elastic = any(".bn.bn." in key for key in file)
    if is_elastic:
        written = to_elastic(state, definition, naming)
    else:
        largest = definition.on_meta(definition.space.largest).state_dict()
        written = naming.to_origin({key: state[key] for key in largest}, definition)
    original = {key.replace(".mobile_inverted_conv.", ".conv."): t for key, t in file.items()}
    assert written.keys() == original.keys()
    for key, tensor in original.items():
        if key.endswith("_matrix"):
            torch.testing.assert_close(written[key], tensor, atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(written[key], tensor), key


def test_small_kernels_are_transformed_or_cropped() -> None:
    definition = define("ofa_mobilenet_v3_w1.0")
    naming = find_naming("ofa", "ofa_mobilenet_v3")
    for shapes in (mobilenet_v3(part="conv"), mobilenet_v3(elastic=False, part="conv")):
        file = drawn(shapes)
        state = import_state(file, definition, naming)
        whole = state["blocks.7.conv_dw.7.weight"]  # (240, 1, 7, 7)
        middle, small = whole[:, 0, 1:6, 1:6], whole[:, 0, 2:5, 2:5]
        layer = "blocks.7.conv.depth_conv.conv"
        if f"{layer}.7to5_matrix" in file:
            middle = F.linear(middle.flatten(1), file[f"{layer}.7to5_matrix"]).view(-1, 5, 5)
            inner = middle[:, 1:4, 1:4].flatten(1)
            small = F.linear(inner, file[f"{layer}.5to3_matrix"]).view(-1, 3, 3)
        torch.testing.assert_close(state["blocks.7.conv_dw.5.weight"][:, 0], middle)
        torch.testing.assert_close(state["blocks.7.conv_dw.3.weight"][:, 0], small)


def test_a_missing_matrix_or_weight_is_listed() -> None:
    definition = define("ofa_mobilenet_v3_w1.0")
    naming = find_naming("ofa", "ofa_mobilenet_v3")
    for key in (
        "blocks.3.conv.depth_conv.conv.5to3_matrix",
        "blocks.3.conv.point_linear.conv.conv.weight",
    ):
        file = drawn(mobilenet_v3(part="conv"))
        del file[key]
        with pytest.raises(WeightsError, match="missing blocks.3.conv"):
            import_state(file, definition, naming)


def test_independent_kernels_do_not_fit_an_elastic_file() -> None:
    definition = define("ofa_mobilenet_v3_w1.0")
    naming = find_naming("ofa", "ofa_mobilenet_v3")
    state = import_state(drawn(mobilenet_v3()), definition, naming)
    kernel = state["blocks.3.conv_dw.5.weight"]
    kernel.copy_(torch.randn(kernel.shape, generator=torch.Generator().manual_seed(2)))
    with pytest.raises(ValueError, match="no matrix makes the 5x5 kernel"):
        to_elastic(state, definition, naming)


def test_a_subnet_is_written_as_ofas_static_network_numbers_its_blocks() -> None:
    definition = define("ofa_resnet50")
    naming = find_naming("ofa", "ofa_resnet50")
    state = import_state(drawn(resnet50()), definition, naming)
    arch = definition.space.smallest
    written = naming.to_origin(extract(state, definition, arch).state_dict(), definition)
    blocks = {int(key.split(".")[1]) for key in written if key.startswith("blocks.")}
    assert blocks == set(range(10))
    assert {key.split(".")[1] for key in written if key.startswith("input_stem")} == {"0", "1"}
    assert written["input_stem.1.conv.weight"].shape == (40, 24, 3, 3)
