"""`FoldedNorms`: the normalisation of many subnets, as one scale and shift per channel.

A BatchNorm in eval mode is y * scale + shift with scale = weight / sqrt(var + eps) and shift =
bias - mean * scale. Mean, variance and affine fold into these two, and a subnet's vectors lie in
one flat tensor, so hundreds of subnets cost two numbers per channel and nothing per layer. In 16
bit (float16) they cost half; what that does to accuracy must be measured (`docs/actuation.md`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.describe import describe
from supernet.slicing import leading_slice

_DTYPES = (torch.float32, torch.float16)


class Affine(NamedTuple):
    """A folded norm: y * scale + shift per channel, float32 (C,)."""

    scale: torch.Tensor
    shift: torch.Tensor


class FoldedNorms:
    """Scale and shift of every BatchNorm of every subnet that was added."""

    def __init__(
        self,
        definition: SupernetDefinition,
        state: Mapping[str, torch.Tensor],
        dtype: torch.dtype = torch.float32,
    ):
        """Keep vectors as `dtype`, float32 or float16; `state` has the shared affine weights."""
        if dtype not in _DTYPES:
            raise ValueError(f"norms are kept as {dtype}, allowed torch.float32, torch.float16")
        self._definition = definition
        self._state = state
        self._dtype = dtype
        self._flat: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()
        self._eps = {
            name: module.eps
            for name, module in definition.on_meta().named_modules()
            if isinstance(module, nn.BatchNorm2d)
        }

    @property
    def num_bytes(self) -> int:
        """Bytes of all vectors."""
        return sum(flat.nbytes for flat in self._flat.values())

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Subnets that were added."""
        return tuple(self._flat)

    def add(self, arch: Arch, statistics: Mapping[str, torch.Tensor]) -> None:
        """Fold and keep one subnet's running statistics (by buffer name).

        float16 is refused per subnet, and float32 kept, where a value is above 65504, or a scale
        below the normal range, 6e-5: it would lose its digits. A shift there is off by 3e-8 at
        most. Raises ValueError naming what is missing or misshaped.
        """
        vectors: list[torch.Tensor] = []
        wrong: list[str] = []
        for name, channels in self._norms(arch):
            mean, var = (statistics.get(f"{name}.{key}") for key in ("running_mean", "running_var"))
            if mean is None or var is None or mean.shape != (channels,) or var.shape != (channels,):
                wrong.append(name)
                continue
            weight, bias = self._shared_affine(name, channels)
            scale = weight * torch.rsqrt(var.float() + self._eps[name])
            vectors += [scale, bias - mean.float() * scale]
        if wrong:
            raise ValueError(
                f"norm statistics of {arch.subnet_id} lack or misshape {', '.join(wrong)}; "
                "calibrate this subnet first"
            )
        flat = torch.cat(vectors) if vectors else torch.empty(0)
        if self._dtype == torch.float16 and _fits_float16(vectors[::2], flat):
            flat = flat.half()
        with self._lock:
            self._flat[arch.subnet_id] = flat

    def flat(self, subnet_id: str) -> torch.Tensor:
        """Return all vectors of a subnet behind each other, in the dtype that they are kept in.

        Raises KeyError for a subnet that was not added.
        """
        return self._flat[subnet_id]

    def affines(self, arch: Arch, flat: torch.Tensor | None = None) -> dict[str, Affine]:
        """Return {norm name: scale and shift} of one subnet, float32; views where that is kept.

        With `flat`, a copy of what the method of that name gives, they are views of it. Raises
        KeyError for a subnet that was not added.
        """
        flat = self._flat[arch.subnet_id].float() if flat is None else flat
        result: dict[str, Affine] = {}
        start = 0
        for name, channels in self._norms(arch):
            pair = flat[start : start + 2 * channels]
            result[name] = Affine(pair[:channels], pair[channels:])
            start += 2 * channels
        return result

    def statistics(self, arch: Arch) -> dict[str, torch.Tensor]:
        """Return running statistics that give back what is kept, for `supernet.subnets.extract`."""
        result: dict[str, torch.Tensor] = {}
        for name, (scale, shift) in self.affines(arch).items():
            weight, bias = self._shared_affine(name, len(scale))
            dead = scale == 0  # a channel whose weight is zero: any statistics will do
            safe = torch.where(dead, torch.ones_like(scale), scale)
            var = (weight / safe).square() - self._eps[name]
            result[f"{name}.running_var"] = torch.where(dead, torch.ones_like(var), var)
            mean = torch.where(dead, torch.zeros_like(shift), (bias - shift) / safe)
            result[f"{name}.running_mean"] = mean
        return result

    def _norms(self, arch: Arch) -> tuple[tuple[str, int], ...]:
        return _norms_of(self._definition, arch)

    def _shared_affine(self, name: str, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = (self._state[f"{name}.{key}"].detach() for key in ("weight", "bias"))
        return leading_slice(weight, (channels,)), leading_slice(bias, (channels,))


@lru_cache(maxsize=64)  # few are wanted at a time; all 500 need not be kept
def _norms_of(definition: SupernetDefinition, arch: Arch) -> tuple[tuple[str, int], ...]:
    """(name, channels) of every norm of a subnet."""
    buffers = describe(lambda: definition.build(arch)).buffers
    return tuple(
        (name.removesuffix(".running_mean"), shape[0])
        for name, shape in buffers.items()
        if name.endswith(".running_mean")
    )


def _fits_float16(scales: Sequence[torch.Tensor], flat: torch.Tensor) -> bool:
    limits = torch.finfo(torch.float16)
    sizes = [scale.abs() for scale in scales]
    keep_digits = all(bool(((s == 0) | (s >= limits.tiny)).all()) for s in sizes)
    return keep_digits and bool((flat.abs() <= limits.max).all())
