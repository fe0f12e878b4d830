"""The packing `one_copy`: 1x1 convolutions of every width read one weight, and give the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from subnetact.cache import SLICE_PACKINGS, SubgraphCache
from subnetact.conv_geometry import ConvGeometry
from subnetact.cuda.accelerator import HostAccelerator
from subnetact.cuda.cuda_site_calls import matrix_kernel, num_launches, site_kernel
from subnetact.cuda.cuda_slice import is_matrix
from subnetact.cuda.cuda_supernet import CudaSupernet, resident_bytes
from subnetact.cuda.device_bytes import DeviceBytes, SupernetShapes
from subnetact.cuda.pointwise import in_parts
from subnetact.norms import Affine, FoldedNorms
from subnetact.program import ConvSite
from supernet import Arch, calibrate, define_supernet, extract
from supernet.definition import SupernetDefinition

WIDTHS = (8, 24, 40)
ACTIVATIONS = {None: lambda y: y, "relu": torch.relu, "hard_swish": F.hardswish}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def site_of(
    out: int,
    into: int,
    stride: int = 1,
    *,
    has_bias: bool = False,
    norm: str | None = None,
    act: str | None = None,
    adds: bool = False,
    **geometry: Any,
) -> ConvSite:
    plain = ConvGeometry(
        weight_shape=(out, into, 1, 1),
        input_shape=(into, 6, 5),
        stride=(stride, stride),
        padding=(0, 0),
        dilation=(1, 1),
        groups=1,
    )
    changed = replace(plain, **geometry)
    return ConvSite("conv", changed, has_bias, norm=norm, act=act, adds=adds)


class Kernels(TorchDispatchMode):
    """Counts the calls that compute; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        assert isinstance(func, torch._ops.OpOverload)
        name = func.name()
        if not func.is_view and "alias" not in name:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("has_norm", [False, True])
def test_a_product_on_a_part_of_the_weight_is_the_convolution_at_every_width(
    dtype: torch.dtype, stride: int, has_norm: bool
) -> None:
    """Every width in and out, with and without bias, addition and activation."""
    whole = drawn(WIDTHS[-1], WIDTHS[-1], seed=1).to(dtype)
    flags = itertools.product(WIDTHS, WIDTHS, (False, True), ACTIVATIONS, (False, True))
    for out, into, has_bias, act, adds in flags:
        norm = "bn" if has_norm else None
        site = site_of(out, into, stride, has_bias=has_bias, norm=norm, act=act, adds=adds)
        assert is_matrix(site)
        x = drawn(3, into, 6, 5, seed=2).to(dtype, memory_format=torch.channels_last)
        weight, bias = whole[:out, :into], drawn(out, seed=3).to(dtype) if has_bias else None
        assert weight.stride(0) == WIDTHS[-1], "a view: no copy for this width"
        affine = Affine(1 + 0.1 * drawn(out, seed=4), drawn(out, seed=5)) if has_norm else None
        expected = F.conv2d(
            x.float(),
            weight.float()[:, :, None, None],
            None if bias is None else bias.float(),
            stride,
        )
        if affine is not None:
            expected = expected * affine.scale.view(-1, 1, 1) + affine.shift.view(-1, 1, 1)
        other = drawn(*expected.shape, seed=6).to(dtype) if adds else None
        expected = ACTIVATIONS[act](expected if other is None else expected + other.float())
        with torch.inference_mode():
            got = matrix_kernel(site, affine, in_parts)(weight, bias, x, other)
        assert got.dtype == dtype
        assert got.is_contiguous(memory_format=torch.channels_last)
        tolerance = 1e-5 if dtype == torch.float32 else 0.03
        assert (got.float() - expected).abs().max() <= tolerance * expected.abs().max()


def test_what_is_no_product_of_matrices_has_a_slice() -> None:
    assert is_matrix(site_of(8, 8))
    assert not is_matrix(site_of(8, 8, groups=2))
    assert not is_matrix(site_of(8, 8, padding=(1, 1)))
    assert not is_matrix(site_of(8, 8, weight_shape=(8, 8, 3, 3)))


@pytest.mark.slow  # a dispatch mode imports torch's compiler
def test_launches_are_the_calls_that_are_made() -> None:
    x = drawn(2, 24, 6, 5).contiguous(memory_format=torch.channels_last)
    other = drawn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    weight, bias, affine = drawn(8, 24, 1, 1), drawn(8), Affine(drawn(8), drawn(8))
    for norm, act, adds in itertools.product((None, "bn"), ACTIVATIONS, (False, True)):
        for has_bias in (False, True):
            site = site_of(8, 24, has_bias=has_bias, norm=norm, act=act, adds=adds)
            outside = affine if norm else None
            arguments = (bias if has_bias else None, x, other if adds else None)
            for packing, compute, first in (
                ("one_copy", matrix_kernel(site, outside, in_parts), weight[:, :, 0, 0]),
                ("shared", site_kernel(site, outside, None, in_parts), weight),
            ):
                kernels = Kernels()
                with torch.inference_mode(), kernels:
                    compute(first, *arguments)
                # cuDNN adds a bias by a launch of its own, the CPU does not
                extra = packing == "shared" and has_bias
                assert len(kernels.names) == num_launches(site, packing) - extra, kernels.names
    residual = site_of(8, 24, norm="bn", act="relu", adds=True)
    assert num_launches(residual, "folded", is_fused=True) == 1
    assert num_launches(residual, "one_copy", is_joined=True) == 2
    assert num_launches(residual, "folded") == num_launches(residual, "shared") == 4


def network(
    definition: SupernetDefinition,
    archs: Sequence[Arch],
    packing: str,
    dtype: torch.dtype,
    norm_dtype: torch.dtype = torch.float32,
) -> tuple[CudaSupernet, dict[str, torch.Tensor]]:
    """All of `archs` resident on the stand-in, statistics of the largest's leading channels."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in definition.on_meta().state_dict().items():
        fan_in = max(1, int(np.prod(tensor.shape[1:])))
        values = torch.randn(tensor.shape, generator=generator)
        state[name] = values * (2 / fan_in) ** 0.5 if tensor.dim() > 1 else 1 + 0.1 * values
        if name.endswith("running_var"):
            state[name] = state[name].abs()
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    norms = FoldedNorms(definition, state, norm_dtype)
    cache = SubgraphCache(None)
    net = CudaSupernet(
        definition, state, norms, cache, HostAccelerator(), packing=packing, dtype=dtype,
        keep_host_slices=False,
    )  # fmt: skip
    for arch in archs:
        x = definition.example_input(arch, 2)
        own = calibrate(extract(state, definition, arch), [drawn(*x.shape)])
        net.load(net.slices(net.register(arch, own)))
        state |= {f"{arch.subnet_id}/{name}": tensor for name, tensor in own.items()}
    return net, state


@pytest.fixture(scope="module")
def resnet() -> SupernetDefinition:
    return define_supernet("ofa_resnet50", resolutions=(32,), num_classes=10)


def mixed(definition: SupernetDefinition, seed: int) -> Arch:
    return definition.space.sample(np.random.default_rng(seed))


@pytest.mark.slow
def test_every_width_of_a_network_equals_the_extracted_subnet(resnet: SupernetDefinition) -> None:
    """Each width with each expand ratio throughout, and mixed ones; one weight for all of them."""
    space = resnet.space
    choices = itertools.product((0.2, 0.25, 0.35), (0, 1, 2))
    archs = [
        space.uniform(depth=0, expand=expand, width=width, resolution=32)
        for expand, width in choices
    ]
    archs += [mixed(resnet, seed) for seed in range(2)]
    with torch.inference_mode():
        net, state = network(resnet, archs, "one_copy", torch.float32)
        for arch in archs:
            x = drawn(*resnet.example_input(arch, 2).shape, seed=9)
            x = x.contiguous(memory_format=torch.channels_last)
            prefix = f"{arch.subnet_id}/"
            own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
            expected = extract(state, resnet, arch, own)(x)
            got = net.run(net.actuate(arch.subnet_id), x)
            assert (got - expected).abs().max() <= 1e-4 * expected.abs().max(), arch.subnet_id


@pytest.mark.parametrize("packing", SLICE_PACKINGS)
def test_bytes_are_counted_as_they_are_held(packing: str) -> None:
    tiny = define_supernet("resnet_tiny")
    archs = tiny.space.ladder()[:3]
    norm_dtype = torch.float16 if packing == "one_copy" else torch.float32
    with torch.inference_mode():
        net, _ = network(tiny, archs, packing, torch.bfloat16, norm_dtype)
    shapes = SupernetShapes(tiny)
    counted = DeviceBytes(shapes, packing, torch.bfloat16, norm_dtype)
    for arch in archs:
        counted.add(shapes.of(arch))
    slices = [s for subnet_id in net.subnet_ids for s in net.slices(subnet_id)]
    assert counted.parts.slices == resident_bytes(slices) == net.cache.held_bytes
    assert counted.parts.whole + counted.parts.norms == net.fixed_bytes


def test_another_width_takes_no_bytes_but_those_of_its_norms_and_slices(
    resnet: SupernetDefinition,
) -> None:
    shapes = SupernetShapes(resnet)
    counted = DeviceBytes(shapes, "one_copy", torch.bfloat16, torch.float16)
    taken = []
    for width in (0, 1, 2):
        arch = resnet.space.uniform(depth=0, expand=0.25, width=width, resolution=32)
        counted.add(shapes.of(arch))
        taken.append(counted.parts)
        assert all(len(key.shape) == 4 and key.shape[2:] == (3, 3) for key in counted.slice_keys)
    assert taken[0].whole == taken[2].whole > 0
    assert taken[0].slices < taken[1].slices < taken[2].slices
