"""Every family on the CUDA path, a CPU in place of the device, against the extracted subnet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from subnetact.cache import SubgraphCache
from subnetact.cuda.cuda_executor import CudaExecutor
from subnetact.cuda.cuda_supernet import CudaSupernet
from subnetact.norms import FoldedNorms
from subnetact.program import Program
from supernet import (
    Arch,
    Checkpoint,
    InputSpec,
    ServedSubnet,
    calibrate,
    define_supernet,
    extract,
)
from supernet.definition import SupernetDefinition
from tests.subnetact.cuda.lane_accelerator import LaneAccelerator

TOLERANCE = {
    "shared": 1e-5,
    "folded": 2e-4,
    "one_copy": 1e-5,
}  # relative to the largest value, float32


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def random_state(definition: SupernetDefinition) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in definition.on_meta().state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        elif name.endswith("running_var"):
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            fan_in = max(1, int(np.prod(tensor.shape[1:])))
            drawn = torch.randn(tensor.shape, generator=generator)
            scale = (2 / fan_in) ** 0.5
            state[name] = drawn * scale if tensor.dim() > 1 else 1 + 0.1 * drawn
    return state


@pytest.mark.parametrize(
    ("variant", "packing"),
    [
        ("ofa_resnet50", "folded"),
        ("ofa_mobilenet_v3_w1.0", "shared"),
        pytest.param("ofa_mobilenet_v3_w1.0", "one_copy", marks=pytest.mark.slow),
        ("ofa_resnet50", "one_copy"),
        ("vit_tiny_patch16_224", "folded"),
        ("bert_tiny", "shared"),
    ],
)
def test_every_family_resident_and_streamed_equals_the_extracted_subnet(
    variant: str, packing: str
) -> None:
    with torch.inference_mode():
        definition = define_supernet(variant)
        state = random_state(definition)
        arch = definition.space.smallest
        x = example(definition, arch)
        own = statistics(definition, state, arch, x)
        expected = extract(state, definition, arch, own)(x)
        for budget in (None, 0):
            net = CudaSupernet(
                definition,
                state,
                FoldedNorms(definition, state),
                SubgraphCache(budget),
                LaneAccelerator(),
                packing=packing,
                dtype=torch.float32,
            )
            subnet_id = net.register(arch, own)
            loaded = net.load(net.slices(subnet_id))
            assert loaded == (len(net.slices(subnet_id)) if budget is None else 0)
            got = [net.run(net.actuate(subnet_id), x) for _ in range(2)][-1]
            assert difference(got.numpy(), expected.numpy()) <= TOLERANCE[packing]


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("resnet_tiny", "fc"),
        pytest.param("ofa_mobilenet_v3_w1.0", "classifier", marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", "head", marks=pytest.mark.slow),
        ("bert_tiny", "classifier"),
    ],
)
def test_logits_of_sixteen_bit_networks_are_computed_in_float32(variant: str, name: str) -> None:
    """What comes to the classifier is rounded; what it gives is not."""
    with torch.inference_mode():
        definition = define_supernet(variant)
        assert Program.classifier(definition) == name
        state = random_state(definition)
        arch = definition.space.smallest
        x = example(definition, arch)
        own = statistics(definition, state, arch, x)
        net = CudaSupernet(
            definition,
            state,
            FoldedNorms(definition, state),
            SubgraphCache(None),
            LaneAccelerator(),
            dtype=torch.bfloat16,
        )
        subnet_id = net.register(arch, own)
        net.load(net.slices(subnet_id))
        logits = net.run(net.actuate(subnet_id), x.bfloat16() if x.is_floating_point() else x)
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).float().mean() > 0.5


def example(definition: SupernetDefinition, arch: Arch) -> torch.Tensor:
    x = definition.example_input(arch, 2)
    generator = torch.Generator().manual_seed(1)
    if not x.is_floating_point():
        return torch.randint(5, 90, x.shape, generator=generator)
    drawn = torch.randn(x.shape, generator=generator)
    return drawn.contiguous(memory_format=torch.channels_last)


def statistics(
    definition: SupernetDefinition, state: dict[str, torch.Tensor], arch: Arch, x: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Calibrated: with drawn ones deep networks amplify rounding."""
    return calibrate(extract(state, definition, arch), [x])


def test_tokens_are_served_through_graphs_too() -> None:
    definition = define_supernet("bert_tiny")
    state = random_state(definition)
    checkpoint = token_checkpoint(definition, state)
    executor = CudaExecutor(checkpoint, LaneAccelerator(), dtype=torch.float32, max_batch_size=2)
    executor.warm_up()
    subnet_id = executor.subnet_ids[0]
    rng = np.random.default_rng(0)
    short, long = (executor.sample.noise(1, rng)[:, :size] for size in (5, 128))
    assert long.max() > 255, "ids of the whole vocabulary"
    before = executor.counts()["graph_replays"]
    got = executor.result(executor.launch(subnet_id, [short, long]))
    net = extract(state, definition, checkpoint.subnet(subnet_id).arch)
    with torch.inference_mode():
        expected = [net(torch.from_numpy(ids).long()).numpy() for ids in (short, long)]
    assert difference(got, np.concatenate(expected)) <= 1e-5
    assert executor.counts()["graph_replays"] == before + 1


def token_checkpoint(definition: SupernetDefinition, state: dict[str, torch.Tensor]) -> Checkpoint:
    arch = definition.space.smallest
    tokens = definition.example_input(arch).shape[1]
    return Checkpoint(
        name="tokens",
        definition=definition,
        input=InputSpec(channels=1, height=1, width=tokens, mean=(0.0,), std=(1.0,), kind="tokens"),
        state=state,
        norm_statistics={arch.subnet_id: {}},
        subnets=(ServedSubnet(arch=arch, accuracy=0.5, ci95=(0.4, 0.6), macs=1, params=1),),
    )
