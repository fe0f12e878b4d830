"""`SearchRequest`: what the options of `supernet search` ask for, of a loaded checkpoint."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from slackfit.profile import LatencyProfile
from supernet import Checkpoint
from training.data.checkpoint_data import ChooseOn
from training.data.samples import Dataset
from training.evaluation.journal import SearchJournal
from training.evaluation.search import Progress, Search, SearchOptions


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """A search of `checkpoint` on `data`; with a `profile` the cost is latency at `batch_size`."""

    checkpoint: Checkpoint
    data: Dataset
    chosen_on: ChooseOn
    options: SearchOptions
    profile: LatencyProfile | None
    batch_size: int

    @property
    def is_of_decoder(self) -> bool:
        """Whether widths are compared by their agreement with the largest, on windows of text."""
        return self.checkpoint.definition.family.generates

    @property
    def unit(self) -> str:
        """What costs are shown in."""
        return "MACs" if self.profile is None else "ms"

    def search(self, keep: Path | None, show: Progress) -> Search:
        """Return the search, which goes on from what the file `keep` holds.

        Raises ValueError where that is about another search, and what `Search` raises.
        """
        return Search(
            self.checkpoint,
            self.data,
            self.options,
            profile=self.profile,
            batch_size=self.batch_size,
            journal=SearchJournal(keep, self._measured_on()),
            progress=show,
        )

    def header(self) -> dict[str, Any]:
        """Return what the result's file says of the search itself."""
        data, limit = self.data, self.options.limit
        most = self.options.windows if self.is_of_decoder else sys.maxsize
        return {
            "checkpoint": self.checkpoint.fingerprint,
            "data": data.name,
            "chosen_on": self.chosen_on,
            "num_validation": min(most, len(data.validation)),
            "num_test": min(most, len(data.test)),
            "cost": "macs" if self.profile is None else f"latency_s of batch {self.batch_size}",
            "limit": None if limit == inf else limit,
            "seed": self.options.seed,
        }

    def _measured_on(self) -> dict[str, Any]:
        """Return what an accuracy that was measured depends on, besides the subnet."""
        data, options = self.data, self.options
        name = "windows" if self.is_of_decoder else "calibration_images"
        return {
            "checkpoint": self.checkpoint.fingerprint,
            "data": data.split.digest if data.split else data.name,
            "chosen_on": self.chosen_on,
            "images": [len(data.train), len(data.validation), len(data.test)],
            name: getattr(options, name),
        }


def cost_limit(profile: Path | None, max_macs: float | None, max_latency_ms: float | None) -> float:
    """Return the limit that options give, in MACs, or in seconds where there is a profile.

    `max_macs` is in millions. Raises ValueError for a limit of the other kind.
    """
    if max_latency_ms is not None and profile is None:
        raise ValueError("--max-latency-ms needs --profile, a measured latency profile")
    if max_macs is not None and profile is not None:
        raise ValueError("--max-macs and --profile: with a profile the limit is --max-latency-ms")
    if max_latency_ms is not None:
        return max_latency_ms / 1e3
    return inf if max_macs is None else max_macs * 1e6
