"""Weights of others: the largest subnet computes what their network computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from supernet import SupernetDefinition, cost, define_supernet, extract, load_checkpoint
from supernet.checkpoint import CheckpointError
from supernet.weights.import_weights import import_state, import_supernet
from supernet.weights.naming import find_naming
from supernet.weights.weight_files import WeightsError

# (supernet, the origin's name for it, input size): small where the weights do not depend on it.
TIMM = [
    ("resnet18", 64),
    ("resnet34", 64),
    ("resnet50", 64),
    ("resnet101", 64),
    ("mobilenetv3_large_100", 64),
    ("mobilenetv3_small_100", 64),
    ("tf_mobilenetv3_large_100", 64),
    ("efficientnet_lite0", 64),
    ("tf_efficientnet_lite0", 64),
    ("tf_efficientnet_lite2", 65),
    ("vit_tiny_patch16_224", 224),
    ("deit_small_patch16_224", 224),
    ("vit_base_patch16_224", 224),
]
# Of blocks that another one has too, more of them or wider ones.
ALIKE = {
    "resnet34", "resnet101", "mobilenetv3_large_100", "tf_efficientnet_lite0",
    "deit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch32_clip_224",
}  # fmt: skip
# Repeated where a network has more weights: drawing 86 million takes a second.
DRAWN = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))


def cases(*networks: tuple[Any, ...]) -> list[Any]:
    """Those that have nothing of their own are slow."""
    return [
        pytest.param(*net, marks=[pytest.mark.slow] if net[0] in ALIKE else []) for net in networks
    ]


def noise(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers, others for every tensor."""
    start, count = int(torch.randint(len(DRAWN), (), generator=generator)), shape.numel()
    return DRAWN.repeat(-(-(start + count) // len(DRAWN)))[start : start + count].view(shape)


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor values that matter: norms away from one, statistics per channel."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if tensor.dim() > 1:
                drawn = noise(tensor.shape, generator)
                tensor.copy_(drawn * (1.5 / tensor[0].numel()) ** 0.5)
            else:
                center = 1.0 if name.endswith(("var", "weight")) else 0.0
                tensor.copy_(center + 0.2 * torch.rand(tensor.shape, generator=generator))
    return net.eval()


@torch.inference_mode()
def assert_same_forward(definition: SupernetDefinition, theirs: nn.Module, origin: str, size: int):
    naming = find_naming(origin, definition.family_name)
    state = import_state(theirs.state_dict(), definition, naming)
    ours = extract(state, definition, definition.space.largest)
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = theirs(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours(x), expected, atol=1e-4, rtol=1e-4)
    exported = naming.to_origin(ours.state_dict(), definition)
    assert exported.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(exported[name], tensor), name


# Towers and ConvNeXts at the smallest images that they take, as embeddings or with a classifier.
SMALL = [
    ("vit_small_patch14_dinov2", 28, 0),
    ("vit_small_patch14_reg4_dinov2", 28, 5),
    ("vit_base_patch32_clip_224", 64, 5),
    ("vit_base_patch32_clip_quickgelu_224", 64, 0),
    ("vit_base_patch16_siglip_224", 32, 0),
    ("convnext_atto", 64, 0),
    ("convnext_tiny", 64, 5),
]


@pytest.mark.parametrize(("name", "size", "classes"), cases(*SMALL))
def test_towers_and_convnexts_are_timms(name: str, size: int, classes: int) -> None:
    sized = {} if name.startswith("convnext") else {"img_size": size}
    theirs = randomise(timm.create_model(name, num_classes=classes, **sized))
    definition = define_supernet(name, resolution=size, num_classes=classes)
    assert_same_forward(definition, theirs, "timm", size)
    macs, params = cost(definition, definition.space.largest)
    assert params == sum(p.numel() for p in theirs.parameters())
    assert macs > 1e6
    assert definition.output.kind == ("logits" if classes else "embedding")


@pytest.mark.parametrize(("name", "macs", "params"), [
    # Published: ConvNeXt (Liu et al., CVPR 2022) 4.5 G and 28.6 M; timm's 0.55 G and 3.7 M (atto);
    # DINOv2's ViT-S/14 with 22.1 M parameters, 46.8 G at 518 pixels in timm's table.
    ("convnext_tiny", 4.46e9, 28.6e6),
    ("convnext_atto", 0.55e9, 3.7e6),
    ("vit_small_patch14_dinov2", 46.8e9, 22.1e6),
])  # fmt: skip
def test_costs_are_the_published_ones(name: str, macs: float, params: float) -> None:
    definition = define_supernet(name)
    counted = cost(definition, definition.space.largest)
    assert counted.macs == pytest.approx(macs, rel=0.02)
    assert counted.params == pytest.approx(params, rel=0.01)


def test_positions_are_resampled_to_another_resolution_as_timm_does() -> None:
    from timm.layers.pos_embed import resample_abs_pos_embed

    theirs = randomise(timm.create_model("vit_small_patch14_dinov2", img_size=56))
    definition = define_supernet("vit_small_patch14_dinov2", resolution=28)
    naming = find_naming("timm", "image_tower")
    state = import_state(theirs.state_dict(), definition, naming)
    expected = resample_abs_pos_embed(theirs.state_dict()["pos_embed"], [2, 2])
    torch.testing.assert_close(state["patch_embed.pos_embed.weight"], expected[0])
    oblong = theirs.state_dict() | {"pos_embed": torch.zeros(1, 16, 384)}
    with pytest.raises(WeightsError, match=r"pos_embed has shape \(1, 16, 384\)"):
        import_state(oblong, definition, naming)


@pytest.mark.parametrize(("name", "size"), cases(*TIMM))
def test_the_largest_subnet_is_timms_network(name: str, size: int) -> None:
    assert_same_forward(define_supernet(name), randomise(timm.create_model(name)), "timm", size)


@pytest.mark.parametrize("name", cases(("resnet18",), ("resnet34",), ("resnet50",), ("resnet101",)))
def test_the_largest_subnet_is_torchvisions_network(name: str) -> None:
    theirs = randomise(torchvision.models.get_model(name, weights=None))
    assert_same_forward(define_supernet(name), theirs, "torchvision", 64)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name, _ in TIMM),
        "tf_mobilenetv3_small_100",
        "tf_efficientnet_lite1",
        "tf_efficientnet_lite3",
        "tf_efficientnet_lite4",
        "vit_small_patch16_224",
        "deit_tiny_patch16_224",
        "deit_base_patch16_224",
    ],
)
def test_parameter_counts_are_timms(name: str) -> None:
    with torch.device("meta"):
        theirs = sum(p.numel() for p in timm.create_model(name).parameters())
    definition = define_supernet(name)
    assert cost(definition, definition.space.largest).params == theirs


def test_missing_unexpected_and_misshaped_tensors_are_listed() -> None:
    definition = define_supernet("resnet20_cifar_a")
    naming = find_naming("cifar_resnet", "resnet")
    state = naming.to_origin(definition.build().state_dict(), definition)
    import_state(state, definition, naming)
    broken = {n: t for n, t in state.items() if n != "bn1.weight"} | {"extra": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"missing bn1.weight; unexpected extra"):
        import_state(broken, definition, naming)
    misshaped = state | {"linear.bias": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"linear.bias has shape \(3,\), expected \(10,\)"):
        import_state(misshaped, definition, naming)


def test_an_origin_that_does_not_name_a_family_lists_those_that_do() -> None:
    with pytest.raises(ValueError, match="vit has no naming of 'ofa'; known are timm"):
        find_naming("ofa", "vit")


RELEASED = Path("models/cifar10_resnet20")


def test_a_checkpoint_of_ours_is_gone_on_from() -> None:
    definition, state = import_supernet(RELEASED, origin="supernet", supernet="resnet20_cifar")
    released = load_checkpoint(RELEASED)
    assert definition == released.definition
    assert all(torch.equal(state[name], tensor) for name, tensor in released.state.items())


def test_a_checkpoint_of_ours_gets_a_head_for_other_classes_when_asked_to() -> None:
    wanted: dict[str, Any] = {
        "origin": "supernet", "supernet": "resnet20_cifar", "num_classes": 7
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"fc.weight has shape .*expected \(7, 64\)"):
        import_supernet(RELEASED, **wanted)
    _, state = import_supernet(RELEASED, new_head=True, **wanted)
    assert (state["fc.weight"].shape, state["fc.bias"].shape) == ((7, 64), (7,))
    with pytest.raises(CheckpointError, match="not known layer1"):
        import_supernet(RELEASED, new_head=True, depths=[2, 2, 2], **wanted)
