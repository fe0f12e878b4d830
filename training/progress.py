"""A progress bar over a sequence, gone when its block ends, also by an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


@contextmanager
def tracked(items: Sequence[T], description: str, console: Console) -> Iterator[Iterator[T]]:
    """Yield an iterator over `items` that moves a bar.

    rich's own `track` is a generator with a thread inside. One that an error leaves unfinished
    lives until the garbage collector closes it; should that happen while another bar is being
    drawn, the thread and the collector wait for each other for ever.
    """
    with Progress(console=console) as bar:
        task = bar.add_task(description, total=len(items))

        def following() -> Iterator[T]:
            for item in items:
                yield item
                bar.advance(task)

        yield following()
