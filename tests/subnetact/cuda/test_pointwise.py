"""Our kernel for what follows a convolution, in Triton's interpreter, against its plain twin."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from subnetact.cuda.pointwise import fault_of, in_parts
from subnetact.norms import Affine

_COMPARE = """
import itertools, torch
from subnetact.cuda.pointwise import ACTIVATIONS, in_parts
from subnetact.cuda.pointwise_kernel import joined
from subnetact.norms import Affine

generator = torch.Generator().manual_seed(0)
drawn = lambda *shape: 3 * torch.randn(shape, generator=generator)
dtypes = (torch.float32, torch.float16, torch.bfloat16)
compared = 0
for dtype, of_norm, act, adds in itertools.product(dtypes, dtypes, ACTIVATIONS, (False, True)):
    norm = Affine(drawn(24).to(of_norm), drawn(24).to(of_norm))
    last = torch.channels_last
    y, other = (drawn(3, 24, 9, 7).to(dtype, memory_format=last) for _ in range(2))
    y[0, 0, 0, 0] = torch.nan
    exact = Affine(*(vector.float() for vector in norm))
    expected = in_parts(y.float(), exact, other.float() if adds else None, act)
    address = y.data_ptr()
    got = joined(y, norm, other if adds else None, act)
    assert got.data_ptr() == address and got.dtype == dtype
    rounding = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(
        got.float(), expected, rtol=rounding, atol=1e-5, equal_nan=True, check_stride=False
    )
    rows = drawn(2, 24, 3, 3).to(dtype)  # not channels-last: in parts
    torch.testing.assert_close(
        joined(rows.clone(), norm, None, act), in_parts(rows.clone(), norm, None, act)
    )
    compared += 1
print(compared)
"""


_COMPILE = """
import itertools, warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from subnetact.cuda.pointwise import ACTIVATIONS
from subnetact.cuda.pointwise_kernel import _scale_shift_kernel
pointers = {"y": "*bf16", "scale": "*fp16", "shift": "*fp16", "other": "*bf16"}
numbers = {"numbers": "i32", "channels": "i32"}
constants = dict.fromkeys(("act", "adds", "block"), "constexpr")
for act, adds in itertools.product(ACTIVATIONS, (False, True)):
    source = ASTSource(
        fn=_scale_shift_kernel,
        signature=pointers | numbers | constants,
        constexprs={"act": act or "", "adds": adds, "block": 1024},
    )
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
print("compiled")
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.slow
@needs_triton
def test_the_kernel_compiles_for_a_hopper_without_one(tmp_path: Path) -> None:
    assert run(_COMPILE, TRITON_CACHE_DIR=str(tmp_path)) == "compiled"


@pytest.mark.slow
@needs_triton
def test_the_kernel_equals_its_parts_in_every_dtype_and_activation() -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    assert run(_COMPARE, TRITON_INTERPRET="1") == "90"


def rounded_once(
    y: torch.Tensor, norm: Affine, other: torch.Tensor | None, act: str | None
) -> torch.Tensor:
    """What the kernel is to compute."""
    return y.copy_(in_parts(y.float(), norm, None if other is None else other.float(), act))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_kernel_that_is_wrong_in_one_dtype_is_not_used(dtype: torch.dtype) -> None:
    off = {torch.bfloat16: 2**-5, torch.float16: 2**-8, torch.float32: 1e-3}[dtype]

    def kernel(
        y: torch.Tensor, norm: Affine, other: torch.Tensor | None, act: str | None
    ) -> torch.Tensor:
        result = rounded_once(y, norm, other, act)
        return result.mul_(1 + off) if y.dtype == dtype else result

    assert fault_of(kernel, "cpu") == f"our kernel gives a wrong result for None in {dtype}"


def test_a_right_kernel_has_no_fault_and_a_user_s_draws_stay_as_they_are() -> None:
    before = torch.get_rng_state()
    assert fault_of(rounded_once, "cpu") == ""
    assert torch.equal(torch.get_rng_state(), before)
