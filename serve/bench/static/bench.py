"""`StaticBench`: which networks part `static` compares, and on what.

A checkpoint that was named is compared with a lean server around its largest subnet. Without one
it is OFA-ResNet50 against batchers of others, whose forward is what costs, and the released
CIFAR-10 supernet against the lean server, where the door is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serve.bench.actuation.bench_net import CIFAR_FOLDER
from serve.bench.journal import Journal
from serve.bench.rows import Row, Tell
from serve.bench.serving.setting import Setting, measured
from serve.bench.static import front_bench, lean_bench
from serve.bench.static.front_bench import FrontBench
from serve.bench.static.lean_bench import LeanBench
from serve.bench.static.networks import ofa_resnet50_setting

JournalOf = Callable[[str, Setting], Journal]


class StaticBench:
    """The comparisons one after the other; each keeps its own cells."""

    def __init__(self, parts: list[FrontBench | LeanBench]) -> None:
        self._parts = parts

    def run(self) -> None:
        """Measure what the journals lack."""
        for part in self._parts:
            part.run()

    def rows(self) -> list[Row]:
        """Return the rows of what is measured so far."""
        return [one for part in self._parts for one in part.rows()]


def of_checkpoint(setting: Setting, journal: JournalOf, *, full: bool, tell: Tell) -> StaticBench:
    """Compare one checkpoint with the lean server."""
    scale = lean_bench.FULL if full else lean_bench.QUICK
    return StaticBench([LeanBench(setting, journal("static", setting), scale=scale, tell=tell)])


def of_published(
    out: Path, journal: JournalOf, *, data: Path | None, threads: int, full: bool, tell: Tell
) -> StaticBench:
    """Compare OFA-ResNet50 with batchers, and the released supernet, where it is, as above."""
    resnet = ofa_resnet50_setting(out, threads=threads, tell=tell)
    scale = front_bench.FULL if full else front_bench.QUICK
    front = FrontBench(resnet, journal("front", resnet), scale=scale, tell=tell)
    if not CIFAR_FOLDER.is_dir():
        tell(f"{CIFAR_FOLDER} is not there: the released supernet is left out")
        return StaticBench([front])
    profile = out / f"{CIFAR_FOLDER.name}-profile.json"
    released = measured(CIFAR_FOLDER, data, profile, threads=threads, tell=tell)
    lean = LeanBench(
        released,
        journal("static", released),
        scale=lean_bench.FULL if full else lean_bench.QUICK,
        tell=tell,
    )
    return StaticBench([front, lean])
