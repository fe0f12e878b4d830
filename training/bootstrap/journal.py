"""`BootstrapJournal`: what a bootstrap has done so far, in `bootstrap.json` of its folder.

Written whole after every stage, so a killed one goes on where it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slackfit.output_files import write_text

FILE = "bootstrap.json"


class JournalError(ValueError):
    """There is nothing to go on from, or it is of a bootstrap that was asked for differently."""


@dataclass(slots=True, kw_only=True)
class BootstrapJournal:
    """`asked` are the options; `spent_s` the seconds of all stages that are done.

    `before` are the subnets as they were imported (`id, macs, accuracy`), `measure_s` the mean time
    that measuring one took. `rates` are those tried, with the accuracy that each led to. `config`
    is the training run's, once it is fixed.
    """

    asked: dict[str, Any]
    spent_s: float = 0.0
    knows_classes: bool = False
    before: list[dict[str, Any]] = field(default_factory=list)
    measure_s: float = 0.0
    rates: list[dict[str, float]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def save(self, out: Path) -> None:
        """Write the file. Raises OutputError."""
        write_text(out / FILE, json.dumps(asdict(self), indent=1) + "\n")


def load_journal(out: Path) -> BootstrapJournal:
    """Read the journal in a folder. Raises JournalError: there is none, or it is damaged."""
    path = out / FILE
    try:
        return BootstrapJournal(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise JournalError(
            f"{path}: no such file, nothing to go on from; leave out --resume"
        ) from None
    except (TypeError, ValueError) as error:
        raise JournalError(f"{path}: not a bootstrap's journal ({error})") from None


def begin(out: Path, asked: dict[str, Any], *, resume: bool) -> BootstrapJournal:
    """A new journal, or the one in `out`.

    Raises JournalError: a bootstrap is there and shall not go on, none is there to go on from, or
    it was asked for with other options (names them).
    """
    if not resume:
        if (out / FILE).exists():
            raise JournalError(
                f"{out} already holds a bootstrap; pass --resume or choose another --out"
            )
        return BootstrapJournal(asked=asked)
    journal = load_journal(out)
    then, now = journal.asked, json.loads(json.dumps(asked))
    differing = [
        f"{name}: {then.get(name)!r} then, {now.get(name)!r} now"
        for name in sorted(then.keys() | now.keys())
        if (then.get(name) or None) != (now.get(name) or None)  # a new option was off before
    ]
    if differing:
        raise JournalError(
            f"{out / FILE} was asked for differently ({'; '.join(differing)}); go on with the same "
            "options or choose another --out"
        )
    return journal
