"""TF32 is off while float32 is computed, and as it was found afterwards, by either interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from subnetact.ieee_float32 import ieee_float32

MATMUL: Any = torch.backends.cuda.matmul
CUDNN: Any = torch.backends.cudnn
NEWER = (MATMUL, CUDNN.conv, CUDNN.rnn)


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    older = MATMUL.allow_tf32, CUDNN.allow_tf32
    newer = [switch.fp32_precision for switch in NEWER]
    yield
    MATMUL.allow_tf32, CUDNN.allow_tf32 = older
    for switch, precision in zip(NEWER, newer, strict=True):
        switch.fp32_precision = precision


def state() -> list[object]:
    found: list[object] = [switch.fp32_precision for switch in NEWER]
    for owner in (MATMUL, CUDNN):
        try:
            found.append(owner.allow_tf32)
        except RuntimeError:  # both interfaces were used
            found.append("mixed")
    return found


def older(is_allowed: bool) -> None:
    MATMUL.allow_tf32 = CUDNN.allow_tf32 = is_allowed


def newer(precision: str) -> None:
    MATMUL.fp32_precision = CUDNN.conv.fp32_precision = precision


@pytest.mark.parametrize(
    "setting",
    [lambda: None, lambda: older(True), lambda: older(False), lambda: newer("tf32")],
    ids=["as found", "older on", "older off", "newer on"],
)
def test_tf32_is_off_within_and_as_it_was_after(setting: Callable[[], None]) -> None:
    setting()
    before = state()
    with ieee_float32():
        assert state() == ["ieee", "ieee", "ieee", False, False]
    assert state() == before
