"""Part `mixed`: its cells, and that what is measured is kept and told with its bar."""

from __future__ import annotations

from pathlib import Path

from serve.bench.journal import Journal
from serve.bench.mixed.bench import MixedBench, mixed_cells, published
from serve.bench.mixed.cell import Finding, MixedCell
from serve.bench.mixed.virtual import virtual_cells


def test_cells_are_measured_once_and_their_rows_say_what_is_asked(tmp_path: Path) -> None:
    measured: list[str] = []

    def measure(name: str) -> list[Finding]:
        measured.append(name)
        return [Finding(f"{name}/attainment", 0.5, "fraction", ">= 0.9", "how")]

    cells = [MixedCell(name, lambda n=name: measure(n)) for name in ("a", "b")]
    for _ in range(2):
        bench = MixedBench(cells, Journal(tmp_path / "mixed.jsonl", {}), tell=lambda text: None)
        bench.run()
        assert [(r["figure"], r["value"], r["detail"]) for r in bench.rows()] == [
            ("serving/mixed/a/attainment", 0.5, ">= 0.9 asked for; how"),
            ("serving/mixed/b/attainment", 0.5, ">= 0.9 asked for; how"),
        ]
    assert measured == ["a", "b"]


def test_a_cell_that_is_not_measured_yet_has_no_row(tmp_path: Path) -> None:
    cell = MixedCell("later", list)
    assert MixedBench([cell], Journal(tmp_path / "m.jsonl", {}), tell=print).rows() == []


def test_every_cell_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = [cell.name for cell in mixed_cells(tmp_path, print)]
    assert len(set(names)) == len(names)
    assert {"models2", "load60/models2", "first_loose", "pinned20", "json16", "open"} <= set(names)


def test_priorities_and_pins_meet_their_bars_in_virtual_time() -> None:
    cells = {cell.name: cell for cell in virtual_cells(published())}
    for finding in (*cells["priority5"].measure(), *cells["pinned20"].measure()):
        assert finding.value >= float(finding.asked.removeprefix(">= ")), finding.name
