"""What a supernet family brings: a module class, a config, a space, channel groups, variants.

`ChannelGroup` says which tensor dimensions share one channel order, so that channels can be
sorted by importance without changing the function of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, get_type_hints

import torch
from torch import nn

from supernet.arch import Arch
from supernet.space import SearchSpace


class FamilyConfig(Protocol):
    """Any frozen dataclass of plain values with at least these fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def num_classes(self) -> int: ...

    @property
    def in_channels(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """Tensor dimensions that are permuted together.

    `produced` are (tensor name, dimension) pairs indexed by the group's channels on the side
    that makes them (weights, biases, norm vectors and statistics), `consumed` those on the side
    that reads them. Importance of a channel is the L1 norm of the weights that consume it.
    With `units`, channels move in that many equal runs (attention heads); `among` (first, step) are
    the units that are interchangeable, every step-th from the first. `activations_at` names
    the module that reads channels whose importance only their activations tell (hidden units of
    gated feed-forwards): what comes in there is measured, and weights alone are refused.
    """

    name: str
    produced: tuple[tuple[str, int], ...]
    consumed: tuple[tuple[str, int], ...]
    units: int | None = None
    among: tuple[int, int] = (0, 1)
    activations_at: str | None = None


def norm_vectors(name: str) -> tuple[tuple[str, int], ...]:
    """The tensors of a BatchNorm that a channel order permutes, for `ChannelGroup.produced`."""
    vectors = ("weight", "bias", "running_mean", "running_var")
    return tuple((f"{name}.{vector}", 0) for vector in vectors)


def example_image(config: FamilyConfig, arch: Arch, batch_size: int) -> torch.Tensor:
    """Zeros (B, in_channels, resolution, resolution)."""
    return torch.zeros(batch_size, config.in_channels, arch.resolution, arch.resolution)


def no_channel_groups(config: FamilyConfig) -> tuple[ChannelGroup, ...]:
    """For families whose channels keep the order in which they were trained."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A registered supernet family.

    `letters` says what each letter of an arch's short form means here; `example_input` makes the
    network's input (config, arch, batch size). A family that `generates` makes text token by token;
    it is run by `subnetact.decoding`, and not by the executors of one answer per sample.
    """

    name: str
    module: Callable[[Any, Arch], nn.Module]
    config: type[Any]
    space: Callable[[Any], SearchSpace]
    channel_groups: Callable[[Any], tuple[ChannelGroup, ...]] = no_channel_groups
    variants: Mapping[str, FamilyConfig] = field(default_factory=dict)
    letters: Mapping[str, str] = field(default_factory=dict)
    example_input: Callable[[Any, Arch, int], torch.Tensor] = example_image
    generates: bool = False

    def make_config(self, values: Mapping[str, Any]) -> FamilyConfig:
        """Build the config from plain data (lists become tuples).

        Raises ValueError on unknown keys (lists the known ones) or values that do not fit.
        """
        known = {f.name for f in fields(self.config)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"{self.name}: unknown config key {', '.join(unknown)}; "
                f"known are {', '.join(sorted(known))}"
            )
        hints = get_type_hints(self.config)
        plain = {name: _tuples(value) for name, value in values.items()}
        for name, value in plain.items():
            if hints[name] in (int, float, str, bool) and not isinstance(value, hints[name]):
                raise ValueError(
                    f"{self.name}: config {name} is {value!r}, expected {hints[name].__name__}"
                )
        try:
            return self.config(**plain)
        except TypeError as error:
            raise ValueError(f"{self.name}: config does not fit ({error})") from None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
