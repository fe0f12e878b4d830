"""A catalogue of devices: what each costs an hour, how long it takes to start, and its profile.

Prices are in a dated TOML file of the user's, never in code: they go stale. Without a catalogue
every device costs one unit, and the cheapest fleet is the smallest.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slackfit.profile import LatencyProfile, ProfileError
from traces.trace import TraceError

_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*device[ \t]*\]\]", re.MULTILINE)
_TOML_LINE = re.compile(r"at line (\d+)")
_KNOWN = {"name", "profile", "price_per_hour", "start_up_s", "max_devices"}
_UNITS = ("sample", "query", "image")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceOffer:
    """One type of device; `max_devices` None is no bound of its own."""

    name: str
    profile: LatencyProfile
    price_per_hour: float = 1.0
    start_up_s: float = 0.0
    max_devices: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Offers, and where their prices come from."""

    offers: tuple[DeviceOffer, ...]
    currency: str = "devices"
    dated: str = ""
    source: str = ""

    def prices_json(self) -> dict[str, str]:
        """Return what its prices are, as a plan says it."""
        return {"currency": self.currency, "dated": self.dated, "source": self.source}


def load_profile(path: Path) -> LatencyProfile:
    """Return a profile that a fleet can be planned with. Raises ProfileError for any other."""
    profile = LatencyProfile.load(path)
    unit = profile.extra.get("unit")
    if unit is not None and unit not in _UNITS:
        raise ProfileError(
            f"{path}: its latencies are per {unit}, not per query; allowed {', '.join(_UNITS)}"
        )
    if not any(subnet.accuracy > 0 for subnet in profile.subnets):
        raise ProfileError(f"{path}: no subnet has an accuracy; measure them with the profile")
    return profile


def without_prices(paths: Sequence[Path]) -> Catalog:
    """Return a catalogue of these profiles in which every device costs one unit.

    Raises TraceError for two profiles of one name: a plan could not tell their devices apart.
    """
    profiles = [load_profile(path) for path in paths]
    twice = [name for name, count in Counter(p.name for p in profiles).items() if count > 1]
    if twice:
        raise TraceError(
            f"profile {twice[0]!r} is given twice; leave one out, or name the devices apart in a "
            "catalogue (--catalog FILE)"
        )
    return Catalog(offers=tuple(DeviceOffer(name=p.name, profile=p) for p in profiles))


def load_catalog(path: Path, profiles: Sequence[Path]) -> Catalog:
    """Return the catalogue's devices that have one of `profiles` (none given: all of them).

    Raises TraceError naming file and line for an entry that is wrong, also for one whose profile
    is, and for a profile that the catalogue has no price of; FileNotFoundError.
    """
    text, data = _toml(path)
    entries = data.get("device", [])
    if not isinstance(entries, list) or not entries:
        raise TraceError(f"{path}: no [[device]]; a catalogue lists at least one")
    if not data.get("dated"):
        raise TraceError(
            f'{path}:1: no date; say when prices were read, as in dated = "2026-11-01"'
        )
    lines = [text.count("\n", 0, found.start()) + 1 for found in _HEADER.finditer(text)]
    wanted = {p.resolve() for p in profiles}
    offers: list[DeviceOffer] = []
    priced: set[Path] = set()
    names: set[str] = set()
    for at, entry in enumerate(entries):
        first = lines[at] if at < len(lines) else 1
        fault = _fault(entry, names)
        if fault:
            raise TraceError(f"{path}:{_line_of(text, first, fault[0])}: {fault[1]}")
        names.add(entry["name"])
        file = (path.parent / entry["profile"]).resolve()
        priced.add(file)
        if wanted and file not in wanted:
            continue
        try:
            offers.append(_offer(entry, load_profile(file)))
        except (ProfileError, OSError) as error:
            raise TraceError(f"{path}:{_line_of(text, first, 'profile')}: {error}") from None
    lacking = sorted(str(p) for p in wanted - priced)
    if lacking:
        raise TraceError(f"{path}: no [[device]] has profile {', '.join(lacking)}")
    return Catalog(
        offers=tuple(offers),
        currency=str(data.get("currency", "units")),
        dated=str(data["dated"]),
        source=str(data.get("source", "")),
    )


def _toml(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a file's text and what it says."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text ({error})") from None
    except tomllib.TOMLDecodeError as error:
        at = _TOML_LINE.search(str(error))
        raise TraceError(f"{path}:{at[1] if at else 1}: {error}") from None


def _offer(entry: Mapping[str, Any], profile: LatencyProfile) -> DeviceOffer:
    """Return the device of an entry without fault."""
    return DeviceOffer(
        name=entry["name"],
        profile=profile,
        price_per_hour=float(entry["price_per_hour"]),
        start_up_s=float(entry.get("start_up_s", 0.0)),
        max_devices=entry.get("max_devices"),
    )


def _fault(entry: Any, names: Collection[str]) -> tuple[str, str] | None:
    """Return (key, what is wrong with it) of an entry, None for a good one; `names` are taken."""
    if not isinstance(entry, dict):
        return "device", "a device is a table, written [[device]]"
    for key in ("name", "profile"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            return key, f"{key} is {entry.get(key)!r}, allowed a text"
    if entry["name"] in names:
        return "name", f"name {entry['name']!r} is an earlier device's, allowed another"
    for key, default, allowed in (
        ("price_per_hour", None, "a number above 0"),
        ("start_up_s", 0.0, "a number of 0 or more"),
    ):
        value = entry.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 <= value < float("inf") and (value > 0 or default == 0.0)):
            return key, f"{key} is {value!r}, allowed {allowed}"
    most = entry.get("max_devices")
    if most is not None and (type(most) is not int or most < 1):
        return "max_devices", f"max_devices is {most!r}, allowed a whole number from 1 up"
    unknown = sorted(set(entry) - _KNOWN)
    if unknown:
        return unknown[0], f"{unknown[0]} is unknown, allowed {', '.join(sorted(_KNOWN))}"
    return None


def _line_of(text: str, first: int, key: str) -> int:
    """Return the line of a key in the entry that begins on a line; the entry's if it has none."""
    for number, line in enumerate(text.splitlines()[first:], start=first + 1):
        if line.lstrip().startswith("[["):
            break
        if re.match(rf"\s*{re.escape(key)}\s*=", line):
            return number
    return first
