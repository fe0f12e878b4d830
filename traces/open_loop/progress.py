"""A progress bar for a replay, drawn on stderr between sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slackfit.plain_console import plain_console
from traces.open_loop.replay import Progress


@contextmanager
def replay_progress(description: str) -> Iterator[Callable[[Progress], None]]:
    """Yield a callback for `replay(progress=...)` that keeps a bar on stderr.

    The bar is drawn by the callback only: a drawing thread would take the interpreter from the
    sender at a bad moment. Nothing is drawn when stderr is no terminal.
    """
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} sent, {task.fields[state]}"),
        TimeElapsedColumn(),
    )
    console = plain_console(stderr=True)
    is_hidden = not console.is_terminal
    with Bar(*columns, console=console, auto_refresh=False, disable=is_hidden) as bar:
        task = bar.add_task(description, total=None, state="starting")

        def show(now: Progress) -> None:
            share = f"{now.on_time / now.ended:.1%} on time" if now.ended else "no answer yet"
            state = f"{share}, {now.sent - now.ended} open"
            bar.update(task, total=now.total, completed=now.sent, state=state, refresh=True)

        yield show
