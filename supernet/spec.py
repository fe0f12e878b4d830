"""Reading an arch from text: a word, letters such as `d=2,w=0.5,e=1`, or an arch's JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from supernet.arch import ALL_NEIGHBOURS, Arch, Number
from supernet.space import SearchSpace

_LETTERS = {
    "d": "depth",
    "w": "width",
    "e": "expand",
    "k": "kernel",
    "h": "heads",
    "f": "fanout",
    "r": "resolution",
}


def parse_arch(text: str, space: SearchSpace) -> Arch:
    """Return the arch that `text` names; letters that are not given are the largest choice.

    `smallest` is the smallest network at the largest resolution, at which costs are compared;
    `smallest,r=128` says otherwise.

    Raises ValueError naming the part that is wrong and what is allowed.
    """
    word, _, rest = text.partition(",")
    if word.strip() in ("largest", "smallest"):
        return _at_resolution(getattr(space, word.strip()), rest, text, space)
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"arch {text!r} is not JSON ({error})") from None
        arch = Arch.from_json(data)
        space.validate(arch)
        return arch
    return space.uniform(**dict(_entry(part, text) for part in text.split(",")))


def _at_resolution(arch: Arch, rest: str, text: str, space: SearchSpace) -> Arch:
    name, value = _entry(rest, text) if rest else ("resolution", space.resolution[-1])
    if name != "resolution":
        raise ValueError(f"arch {text!r}: only a resolution may follow, such as smallest,r=128")
    arch = replace(arch, resolution=int(value))
    space.validate(arch)
    return arch


def _entry(part: str, text: str) -> tuple[str, Number]:
    letter, equals, number = part.strip().partition("=")
    if not equals or letter not in _LETTERS:
        raise ValueError(
            f"arch {text!r}: {part.strip()!r} is not LETTER=NUMBER with a letter of "
            f"{', '.join(f'{k} ({v})' for k, v in _LETTERS.items())}; "
            "or say largest, smallest, or an arch's JSON"
        )
    if letter == "f" and number == "all":
        return "fanout", ALL_NEIGHBOURS
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"arch {text!r}: {number!r} is not a number") from None
    return _LETTERS[letter], int(value) if value.is_integer() else value
