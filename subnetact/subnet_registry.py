"""`SubnetRegistry`: what is known of each registered subnet, by its id."""

from __future__ import annotations

from typing import NoReturn, TypeVar

V = TypeVar("V")


class SubnetRegistry(dict[str, V]):
    """A dict whose missing key is an error that names the registered ids."""

    def __missing__(self, subnet_id: str) -> NoReturn:
        raise KeyError(f"subnet {subnet_id!r} is not registered; registered: {', '.join(self)}")
