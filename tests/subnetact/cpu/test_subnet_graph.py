"""Every subnet's graph computes what the extracted subnet computes, for all families."""

import numpy as np
import onnx
import pytest
import torch

from subnetact.cpu.graph_template import GraphTemplate, record, topology, write_template
from subnetact.cpu.graph_writer import GraphError
from subnetact.cpu.ort_session import OrtSession
from subnetact.cpu.subnet_graph import subnet_graph
from supernet.arch import Arch
from supernet.definition import SupernetDefinition, define_supernet
from supernet.input import InputSpec
from supernet.subnets.calibrate import calibrate
from supernet.subnets.extract import extract

_IMAGE = InputSpec(channels=3, height=40, width=40, mean=(0.4, 0.5, 0.3), std=(0.2, 0.25, 0.3))
_CASES = {
    "resnet": ("resnet20_cifar", {}, (32, 32)),
    "resnet_a": ("resnet20_cifar_a", {}, (32, 32)),
    "resnet_bottleneck": ("resnet50", {"resolution": 64, "num_classes": 7}, (64, 64)),
    "ofa_resnet50": ("ofa_resnet50", {"resolutions": (44, 62), "num_classes": 7}, (56, 56)),
    "ofa_mobilenet_v3": (
        "ofa_mobilenet_v3_w1.0",
        {"resolutions": (40, 50), "num_classes": 7},
        (40, 40),
    ),
    "ofa_proxyless": ("ofa_proxyless_w1.3", {"num_classes": 7}, (40, 40)),
    "mobilenet_v3": (
        "mobilenetv3_large_100",
        {"resolutions": (37, 48), "num_classes": 7},
        (40, 40),
    ),
    "tf_mobilenet_v3": (
        "tf_mobilenetv3_small_100",
        {"resolutions": (37, 48), "num_classes": 7},
        (40, 40),
    ),
    "efficientnet_lite": ("tf_efficientnet_lite0", {"num_classes": 7}, (40, 40)),
    "pooled_resnet": ("pooled_resnet_cifar", {"widths": (16, 24), "depths": (2, 2)}, (32, 32)),
    "dinov2": (
        "vit_small_patch14_reg4_dinov2",
        {
            "resolution": 28,
            "width": 48,
            "num_heads": 3,
            "heads_choices": (1, 2, 3),
            "depth": 3,
            "depth_choices": (1, 2, 3),
        },
        (28, 28),
    ),
    "clip": (
        "vit_base_patch32_clip_quickgelu_224",
        {
            "resolution": 64,
            "width": 48,
            "num_heads": 3,
            "heads_choices": (1, 2, 3),
            "depth": 3,
            "depth_choices": (1, 2, 3),
        },
        (64, 64),
    ),
    "siglip": (
        "vit_base_patch16_siglip_224",
        {
            "resolution": 32,
            "width": 48,
            "num_heads": 3,
            "heads_choices": (1, 2, 3),
            "depth": 3,
            "depth_choices": (1, 2, 3),
        },
        (32, 32),
    ),
    "convnext": ("convnext_atto", {"resolution": 32, "num_classes": 7}, (32, 32)),
    "convnext_linear": (
        "convnext_tiny",
        {"resolution": 32, "num_classes": 7, "widths": (8, 16), "depths": (2, 2)},
        (32, 32),
    ),
    "vit": (
        "vit_tiny_patch16_224",
        {
            "resolution": 32,
            "patch_size": 8,
            "width": 48,
            "depth": 3,
            "depth_choices": (1, 2, 3),
            "num_classes": 7,
        },
        (32, 32),
    ),
}


def _archs(definition: SupernetDefinition) -> list[Arch]:
    rng = np.random.default_rng(5)
    return [definition.space.smallest, definition.space.sample(rng, tilt=0.3)]


def _images(spec: InputSpec, count: int, seed: int = 0) -> np.ndarray:
    """Smooth random images, so that the logits differ from one to the next."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, spec.channels, 4, 4)).astype(np.float32)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(coarse), size=(spec.height, spec.width), mode="bilinear"
    )
    return resized.numpy().astype(np.uint8)


def _state(definition: SupernetDefinition) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return definition.build().state_dict()


def _statistics(
    state: dict[str, torch.Tensor], definition: SupernetDefinition, arch: Arch, x: torch.Tensor
) -> dict[str, torch.Tensor]:
    return calibrate(extract(state, definition, arch), [x])


def _session(model: onnx.ModelProto, tmp_path) -> OrtSession:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return OrtSession(path)


def _check(answered: np.ndarray, expected: np.ndarray) -> None:
    spread = expected.std(axis=0).max()
    assert spread > 1e-4, "the samples' logits are alike: this checks nothing"
    np.testing.assert_allclose(answered, expected, rtol=1e-3, atol=2e-3 * spread)


@pytest.mark.parametrize("case", _CASES)
def test_a_graph_equals_the_extracted_subnet(case, tmp_path):
    name, overrides, (height, width) = _CASES[case]
    definition = define_supernet(name, **overrides)
    spec = InputSpec(channels=3, height=height, width=width, mean=_IMAGE.mean, std=_IMAGE.std)
    state = _state(definition)
    samples = _images(spec, 3)
    for arch in _archs(definition):
        x = spec.normalise(torch.from_numpy(samples), arch.resolution)
        statistics = _statistics(state, definition, arch, x)
        template = write_template(definition, spec, arch)
        model = subnet_graph(template, definition, arch, state, statistics)
        onnx.checker.check_model(model)
        session = _session(model, tmp_path)
        with torch.no_grad():
            expected = extract(state, definition, arch, statistics)(x).numpy()
        _check(session.run(samples), expected)
        _check(np.concatenate([session.run(samples[i : i + 1]) for i in range(3)]), expected)


@pytest.mark.parametrize("tokens", [2, 9, 16])
def test_a_token_graph_masks_padding_and_takes_any_length(tokens, tmp_path):
    definition = define_supernet(
        "bert_tiny", vocab_size=50, num_tokens=16, max_positions=20, num_classes=3
    )
    spec = InputSpec(channels=1, height=1, width=16, mean=(0.0,), std=(1.0,), kind="tokens")
    state = _state(definition)
    for name in state:  # as drawn, embeddings are so small that no token matters
        if name.startswith("embeddings"):
            state[name] = torch.randn_like(state[name])
    ids = np.random.default_rng(0).integers(1, 50, (3, tokens))
    ids[1, tokens // 2 :] = 0
    for arch in _archs(definition):
        template = write_template(definition, spec, arch)
        session = _session(subnet_graph(template, definition, arch, state, {}), tmp_path)
        with torch.no_grad():
            expected = extract(state, definition, arch)(torch.from_numpy(ids)).numpy()
        _check(session.run(ids), expected)


def test_one_template_serves_every_width_of_a_topology(tmp_path):
    definition = define_supernet("resnet20_cifar")
    spec = InputSpec(channels=3, height=32, width=32, mean=_IMAGE.mean, std=_IMAGE.std)
    state = _state(definition)
    samples = _images(spec, 4)
    x = spec.normalise(torch.from_numpy(samples), 32)
    space = definition.space
    archs = [space.uniform(depth=2, width=w, expand=e) for w, e in ((0.5, 1.0), (1.0, 0.5))]
    assert len({topology(arch) for arch in archs}) == 1
    written = write_template(definition, spec, archs[0])
    template = GraphTemplate.from_bytes(written.to_bytes())
    for arch in archs:
        statistics = _statistics(state, definition, arch, x)
        session = _session(subnet_graph(template, definition, arch, state, statistics), tmp_path)
        with torch.no_grad():
            expected = extract(state, definition, arch, statistics)(x).numpy()
        _check(session.run(samples), expected)


def test_a_template_of_depthwise_convolutions_serves_other_widths(tmp_path):
    definition = define_supernet("ofa_mobilenet_v3_w1.0", resolutions=(40,), num_classes=7)
    spec = _IMAGE
    state = _state(definition)
    samples = _images(spec, 4)
    x = spec.normalise(torch.from_numpy(samples), 40)
    space = definition.space
    narrow, wide = (space.uniform(depth=2, expand=e, kernel=5) for e in (3, 6))
    statistics = _statistics(state, definition, wide, x)
    template = write_template(definition, spec, narrow)
    session = _session(subnet_graph(template, definition, wide, state, statistics), tmp_path)
    with torch.no_grad():
        expected = extract(state, definition, wide, statistics)(x).numpy()
    _check(session.run(samples), expected)


def test_a_network_whose_arguments_name_the_batch_is_recorded_with_symbols():
    name, overrides, _ = _CASES["vit"]
    definition = define_supernet(name, **overrides)
    arch = definition.space.smallest
    graph = record(definition.on_meta(arch), definition, arch).graph
    assert any("sym_size" in str(node.target) for node in graph.nodes)
    cnn = define_supernet("resnet_tiny")
    graph = record(cnn.on_meta(cnn.space.smallest), cnn, cnn.space.smallest).graph
    assert not any("sym_size" in str(node.target) for node in graph.nodes)


def test_what_is_no_template_is_refused():
    with pytest.raises(ValueError, match="not a graph template"):
        GraphTemplate.from_bytes(b"\x00 no protobuf")
    with pytest.raises(ValueError, match="not a graph template"):
        GraphTemplate.from_bytes(onnx.ModelProto().SerializeToString())


def test_an_operator_without_a_rule_is_named(monkeypatch):
    from subnetact.cpu import graph_writer

    rules = {k: v for k, v in graph_writer._RULES.items() if k != "aten.relu.default"}
    monkeypatch.setattr(graph_writer, "_RULES", rules)
    definition = define_supernet("resnet_tiny")
    spec = InputSpec(channels=1, height=8, width=8, mean=(0.5,), std=(0.5,))
    with pytest.raises(GraphError, match=r"aten\.relu\.default has no rule"):
        write_template(definition, spec, definition.space.smallest)
