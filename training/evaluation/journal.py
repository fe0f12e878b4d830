"""What a search has measured, kept in a file as it goes, so that one that was stopped goes on.

A line of JSON first says what is measured (weights, data, images); each further one holds a subnet,
a split, and which samples it got right, packed to bits.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from slackfit.output_files import write_text


class SearchJournal:
    """Answers (N,) booleans by subnet and split; `path` None keeps them in memory alone."""

    def __init__(self, path: Path | None = None, about: dict[str, Any] | None = None):
        """Read what is there. Raises ValueError when the file is about something else."""
        self._path = path
        self._known: dict[tuple[str, str], np.ndarray] = {}
        if path is None:
            return
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if not text:
            self._append({"about": about or {}})
            return
        lines = text.splitlines()
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
            except ValueError:
                if number == len(lines) - 1 and number:  # stopped while it was written
                    lines.pop()
                    break
                raise ValueError(f"{path}: line {number + 1} is not JSON") from None
            if number:
                self._known[row["subnet"], row["split"]] = _unpacked(row)
            elif row.get("about") != json.loads(json.dumps(about or {})):
                raise ValueError(
                    f"{path} holds measurements of {row.get('about')}, not of {about}; choose "
                    "another file or delete it"
                )
        whole = "".join(f"{line}\n" for line in lines)
        if whole != text:  # else what comes next would stand behind a line that has no end
            write_text(path, whole)

    def get(self, subnet_id: str, split: str) -> np.ndarray | None:
        """What was measured, None if nothing was."""
        return self._known.get((subnet_id, split))

    def add(self, subnet_id: str, split: str, correct: np.ndarray) -> None:
        """Keep a measurement, at once."""
        self._known[subnet_id, split] = correct
        bits = base64.b64encode(np.packbits(correct).tobytes()).decode()
        row = {"subnet": subnet_id, "split": split, "count": len(correct), "correct": bits}
        self._append(row)

    def _append(self, row: dict[str, Any]) -> None:
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _unpacked(row: dict[str, Any]) -> np.ndarray:
    bits = np.frombuffer(base64.b64decode(row["correct"]), dtype=np.uint8)
    return np.unpackbits(bits, count=row["count"]).astype(bool)
