"""Fields of a JSON request, read by type and range; what is `null` was not given. Pure."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from serve.openai.error_object import FieldError


class BodyFields:
    """One JSON object; `where` names it in refusals, as the path of its fields."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = values
        self._where = where

    def get(self, name: str) -> Any:
        """Return what a field holds, None where it was not given."""
        return self.values.get(name)

    def number(
        self, name: str, default: float, low: float = -math.inf, high: float = math.inf
    ) -> float:
        """Return a finite number from `low` to `high`. Raises FieldError."""
        value = self.get(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or abs(value) > 1e300 or not low <= value <= high:  # NaN compares false
            raise self.bad(name, _range("a number", low, high))
        return float(value)

    def maybe_number(self, name: str, low: float, high: float = math.inf) -> float | None:
        """Return a number as `number` does, None where none was given."""
        return None if self.get(name) is None else self.number(name, 0.0, low, high)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`. Raises FieldError."""
        value = self.get(name)
        if value is None:
            return default
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise self.bad(name, _range("a whole number", low, high))
        return value

    def maybe_whole(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number as `whole` does, None where none was given."""
        return None if self.get(name) is None else self.whole(name, 0, low, high)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false. Raises FieldError."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """Return a string, None where none was given. Raises FieldError."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.bad(name, "a string")
        return value

    def inner(self, name: str) -> BodyFields:
        """Return the fields of an object inside; of one that was not given there are none."""
        value = self.get(name)
        if value is None:
            return BodyFields({}, self._path(name))
        if not isinstance(value, dict):
            raise self.bad(name, "an object")
        return BodyFields(value, self._path(name))

    def bad(self, name: str, allowed: str) -> FieldError:
        """Return the refusal of a field: what it is, what it may be."""
        path = self._path(name)
        return FieldError(path, f"{path} is {reprlib.repr(self.get(name))}, allowed {allowed}")

    def unsupported(self, name: str, text: str) -> FieldError:
        """Return the refusal of a field that is understood, and not served."""
        return FieldError(self._path(name), text, "unsupported")

    def _path(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name


def _range(what: str, low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return what
    if math.isinf(high):
        return f"{what}, {low:g} or more"
    return f"{what} from {low:g} to {high:g}"
