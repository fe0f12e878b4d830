"""`ieee_float32`: within it, float32 products are IEEE's, not TF32's with its ten bits of mantissa.

The switches are torch's for the whole process, so other threads see them too meanwhile. It keeps
them by two interfaces, and refuses to read the older one after the newer was used; all are put back
as they were found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Compute float32 convolutions and matrix products of CUDA in float32, within this context."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    newer = (matmul, cudnn.conv, cudnn.rnn)
    before = [switch.fp32_precision for switch in newer]
    older = {owner: _allowed(owner) for owner in (matmul, cudnn)}
    try:
        for owner, is_allowed in older.items():
            if is_allowed is not None:
                owner.allow_tf32 = False
        for switch in newer:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for owner, is_allowed in older.items():
            if is_allowed is not None:
                owner.allow_tf32 = is_allowed
        for switch, precision in zip(newer, before, strict=True):
            switch.fp32_precision = precision


def _allowed(owner: Any) -> bool | None:
    """The older interface's answer; None where it gives none, since the newer was used."""
    try:
        return owner.allow_tf32
    except RuntimeError:
        return None
