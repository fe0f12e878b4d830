"""The terminal of a command of any package: text is printed as it is.

Folders, models and tenants are named by users, and a name in brackets is no markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console that reads no markup and colours no figures; `width` None: the terminal's.

    rich is imported when this is called, since SlackFit itself needs none of it.
    """
    from rich.console import Console

    return Console(stderr=stderr, width=width, markup=False, highlight=False)
