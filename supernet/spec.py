"""Reading an arch from text: a word, letters such as `d=2,w=0.5,e=1`, or an arch's JSON."""

from __future__ import annotations

import json

from supernet.arch import Arch, Number
from supernet.space import SearchSpace

_LETTERS = {
    "d": "depth",
    "w": "width",
    "e": "expand",
    "k": "kernel",
    "h": "heads",
    "r": "resolution",
}


def parse_arch(text: str, space: SearchSpace) -> Arch:
    """Return the arch that `text` names; letters that are not given are the largest choice.

    Raises ValueError naming the part that is wrong and what is allowed.
    """
    if text in ("largest", "smallest"):
        return space.largest if text == "largest" else space.smallest
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"arch {text!r} is not JSON ({error})") from None
        arch = Arch.from_json(data)
        space.validate(arch)
        return arch
    return space.uniform(**dict(_entry(part, text) for part in text.split(",")))


def _entry(part: str, text: str) -> tuple[str, Number]:
    letter, equals, number = part.strip().partition("=")
    if not equals or letter not in _LETTERS:
        raise ValueError(
            f"arch {text!r}: {part.strip()!r} is not LETTER=NUMBER with a letter of "
            f"{', '.join(f'{k} ({v})' for k, v in _LETTERS.items())}; "
            "or say largest, smallest, or an arch's JSON"
        )
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"arch {text!r}: {number!r} is not a number") from None
    return _LETTERS[letter], int(value) if value.is_integer() else value
