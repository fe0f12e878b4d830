"""A progress bar for a simulation, drawn on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slackfit.plain_console import plain_console


@contextmanager
def simulation_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback for `simulate(progress=...)` that keeps a bar on stderr."""
    from rich.progress import Progress as Bar

    console = plain_console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
