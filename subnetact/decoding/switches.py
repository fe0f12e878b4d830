"""Reading `--arch` and `--switch` of a decoder: which subnet, and from which token on."""

from __future__ import annotations

import re

from supernet.arch import Arch
from supernet.checkpoint import Checkpoint
from supernet.spec import parse_arch

# A comma separates switches only behind a token's number: an arch's letters have commas too.
_SWITCH = re.compile(r"\s*(?P<spec>[^@]+)@(?P<at>\d+)\s*(?:,|$)")


def find_arch(spec: str, checkpoint: Checkpoint) -> Arch:
    """Return the arch of a served subnet's id, or of a SPEC. Raises ValueError as `parse_arch`."""
    served = {subnet.subnet_id: subnet.arch for subnet in checkpoint.subnets}
    return served.get(spec) or parse_arch(spec, checkpoint.definition.space)


def parse_switches(text: str, checkpoint: Checkpoint) -> list[tuple[int, Arch]]:
    """Read `SPEC@TOKEN,...`; returns (token, arch) by rising token.

    Raises ValueError naming the part that is wrong and what is allowed.
    """
    switches: list[tuple[int, Arch]] = []
    rest = text
    while rest.strip():
        found = _SWITCH.match(rest)
        if found is None:
            raise ValueError(
                f"switch {rest.strip()!r} is not SPEC@TOKEN, such as e=0.5@16 or largest@32"
            )
        switches.append((int(found["at"]), find_arch(found["spec"].strip(), checkpoint)))
        rest = rest[found.end() :]
    tokens = [at for at, _ in switches]
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"switches {text!r} name a token twice; give one subnet a token")
    return sorted(switches, key=lambda switch: switch[0])
