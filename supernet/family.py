"""What a supernet family brings: a module class, a config, a space, channel groups, variants.

`ChannelGroup` says which tensor dimensions share one channel order, so that channels can be
sorted by importance without changing the function of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, get_type_hints

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
    """

    name: str
    produced: tuple[tuple[str, int], ...]
    consumed: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A registered supernet family."""

    name: str
    module: Callable[[Any, Arch], nn.Module]
    config: type[Any]
    space: Callable[[Any], SearchSpace]
    channel_groups: Callable[[Any], tuple[ChannelGroup, ...]]
    variants: Mapping[str, FamilyConfig] = field(default_factory=dict)

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
