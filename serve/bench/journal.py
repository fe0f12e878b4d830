"""`Journal`: what a long benchmark has measured so far, so that Ctrl-C or a crash costs one cell.

One JSON line per cell, in the order of measuring. A run with the same settings goes on where the
last one stopped; one with others starts over, since cells of different settings do not compare.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slackfit.output_files import write_text

_SETTINGS = "settings"


class Journal:
    """Cells by name in the file `path`, for one set of `settings` (plain data)."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._cells: dict[str, Any] = {}
        kept = _read(path)
        wanted = json.loads(json.dumps(settings))
        if kept.get(_SETTINGS) != wanted:
            kept = {_SETTINGS: wanted}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(kept)  # anew: the last line may have been cut off

    def __len__(self) -> int:
        """Return how many cells are measured."""
        return len(self._cells) - 1

    def __contains__(self, name: str) -> bool:
        return name in self._cells

    def get(self, name: str) -> Any:
        """Return a cell. Raises KeyError for one that is not measured yet."""
        return self._cells[name]

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the cell `name`, measuring it if it is not there yet."""
        if name not in self._cells:
            self._keep(name, json.loads(json.dumps(measure())))
        return self._cells[name]

    def forget(self, is_wrong: Callable[[str, Any], bool]) -> list[str]:
        """Drop the cells for which `is_wrong(name, cell)`, to be measured again; return them."""
        wrong = [n for n, cell in self._cells.items() if n != _SETTINGS and is_wrong(n, cell)]
        self._write({n: cell for n, cell in self._cells.items() if n not in wrong})
        return wrong

    def _write(self, cells: Mapping[str, Any]) -> None:
        self._cells = dict(cells)
        write_text(self._path, "".join(map(_line, cells.items())))

    def _keep(self, name: str, value: Any) -> None:
        self._cells[name] = value
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line((name, value)))


def _line(cell: tuple[str, Any]) -> str:
    return json.dumps(cell) + "\n"


def _read(path: Path) -> dict[str, Any]:
    """Return the cells of a file; a last line that was cut off is left out."""
    cells: dict[str, Any] = {}
    if not path.exists():
        return cells
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            name, value = json.loads(line)
        except ValueError:
            break
        cells[name] = value
    return cells
