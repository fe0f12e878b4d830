"""Reading `--arch` and `--switch` of a decoder: which subnet, and from which token on."""

from __future__ import annotations

import re
from typing import NamedTuple

from supernet.arch import Arch
from supernet.checkpoint import Checkpoint
from supernet.spec import parse_arch

# A comma separates switches only behind a token's number: an arch's letters have commas too.
_SWITCH = re.compile(r"\s*(?P<spec>[^@]+)@(?P<at>\d+)\s*(?:,|$)")


class ChosenSubnet(NamedTuple):
    """A subnet as it was named: its arch, and the precision of its feed-forwards."""

    arch: Arch
    precision: str = "fp32"


def find_subnet(spec: str, checkpoint: Checkpoint) -> ChosenSubnet:
    """Return the subnet of a served id, in its precision, or of a SPEC.

    Raises ValueError as `parse_arch`.
    """
    for form in checkpoint.forms:
        if form.subnet_id == spec:
            return ChosenSubnet(form.arch, form.precision)
    return ChosenSubnet(parse_arch(spec, checkpoint.definition.space))


def parse_switches(text: str, checkpoint: Checkpoint) -> list[tuple[int, ChosenSubnet]]:
    """Read `SPEC@TOKEN,...`; returns (token, subnet) by rising token.

    Raises ValueError naming the part that is wrong and what is allowed.
    """
    switches: list[tuple[int, ChosenSubnet]] = []
    rest = text
    while rest.strip():
        found = _SWITCH.match(rest)
        if found is None:
            raise ValueError(
                f"switch {rest.strip()!r} is not SPEC@TOKEN, such as e=0.5@16 or largest@32"
            )
        switches.append((int(found["at"]), find_subnet(found["spec"].strip(), checkpoint)))
        rest = rest[found.end() :]
    tokens = [at for at, _ in switches]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"switches {text!r} name a token twice; give one subnet a token")
    return sorted(switches, key=lambda switch: switch[0])
