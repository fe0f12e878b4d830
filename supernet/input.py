"""`InputSpec`: what one sample looks like on the wire, and how it becomes the network's input.

Images travel as uint8 (a quarter of fp32 on the wire and on the bus) and are normalised on the
device, then resized to the resolution of the subnet that serves them. Token ids stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """Shape of one uint8 sample, and mean and standard deviation per channel in units of 255.

    With `kind="tokens"` a sample is up to `width` token ids (channels and height are 1), with
    `kind="nodes"` the id of a node, whose features are the graph's.
    `crop` is the share of a picture's shorter side that becomes the sample, `interpolation` how it
    is resized (Pillow's names): what the weights were evaluated with, None where nothing says so.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str = "image"
    crop: float | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(
                    f"input {name} has {len(getattr(self, name))} values for "
                    f"{self.channels} channels"
                )
        if self.kind not in ("image", "tokens", "nodes"):
            raise ValueError(f"input kind is {self.kind!r}, allowed image, tokens, nodes")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ValueError(f"input crop is {self.crop}, allowed above 0 to 1")
        if self.interpolation not in (None, *INTERPOLATIONS):
            raise ValueError(
                f"input interpolation is {self.interpolation!r}, allowed "
                f"{', '.join(INTERPOLATIONS)}"
            )
        if any(s <= 0 for s in self.std):
            raise ValueError(f"input std is {self.std}, expected positive values")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one sample."""
        return (self.channels, self.height, self.width)

    def constants(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation on `device`, float32 (1, C, 1, 1).

        A CUDA graph needs them beforehand: while it is captured nothing may come from the host.
        """
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in (self.mean, self.std))
        return mean.view(1, -1, 1, 1).to(device), std.view(1, -1, 1, 1).to(device)

    def normalise(
        self,
        samples: torch.Tensor,
        resolution: int,
        constants: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Turn (B, C, H, W) uint8 into (B, C, resolution, resolution) float32.

        Token ids (B, N) or (B, 1, 1, N) become (B, up to resolution) int64. `constants` are those
        of the samples' device, where they are at hand.
        """
        if self.kind == "tokens":
            return samples.flatten(1)[:, :resolution].to(torch.int64)
        mean, std = constants or self.constants(samples.device)
        x = (samples.to(torch.float32).div_(255.0) - mean) / std
        if x.shape[-2:] != (resolution, resolution):
            x = F.interpolate(x, size=(resolution, resolution), mode="bilinear")
        return x

    def as_served(self, samples: torch.Tensor, resolution: int) -> torch.Tensor:
        """`normalise`, and images channels last: the layout in which convolutions are fastest."""
        x = self.normalise(samples, resolution)
        return x if self.kind == "tokens" else x.contiguous(memory_format=torch.channels_last)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; `kind` only where it is not an image, and what is known."""
        data = {name: value for name, value in asdict(self).items() if value is not None}
        return data if self.kind != "image" else {n: v for n, v in data.items() if n != "kind"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputSpec:
        """Rebuild from plain data. Raises ValueError when a field is unknown or missing."""
        try:
            values: dict[str, Any] = dict(data)
            values |= {name: tuple(data[name]) for name in ("mean", "std") if name in data}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"input: {error}") from None
