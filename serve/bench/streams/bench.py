"""`supernet bench streams`: chunking, capacity, overload, orders, fidelity, live, door, peers.

Figures of chunking, capacity, overload and orders are simulated with a profile's cost model and say
which; without a profile of its own chunking measures one first. With a decoder's checkpoint the
figures of chunking are measured on it too, and three points live.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve.bench.rows import Row, Tell, row
from serve.bench.streams.capacity import capacity_of, capacity_rows, overload_rows
from serve.bench.streams.chunking import chunking_rows
from serve.bench.streams.door import door_rows
from serve.bench.streams.live import fidelity_rows, live_point_rows, live_runner
from serve.bench.streams.orders import cost_rows, lars_rows
from serve.bench.streams.peers import PeerSetting, peer_rows
from serve.bench.streams.processor_time import processor_runner
from serve.bench.streams.setting import OURS, StreamRunner, StreamSetting, skipped
from serve.engine.streams.stream_device import IterationExecutor
from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import IterationCosts

_DECODER = "subnetact.decoding.stream_executor"
_KV_TOKENS = 16_384


class StreamsBench:
    """One run of the benchmark: keeps the rows."""

    def __init__(
        self,
        setting: StreamSetting,
        profile: LatencyProfile,
        *,
        checkpoint: Path | None,
        packing: str = "views",
        gguf: Path | None = None,
        measure: Callable[[Tell], LatencyProfile] | None = None,
        tell: Tell,
    ) -> None:
        """Measure in a setting with `profile`'s costs; with a `checkpoint` on that decoder too.

        `packing` is that of the decoder's layers. Chunking is simulated with the profile that
        `measure` returns; None: with `profile` as well.
        """
        self._setting = setting
        self._profile = profile
        self._checkpoint, self._packing = checkpoint, packing
        self._gguf, self._measure = gguf, measure
        self._tell = tell
        self._capacity_qps: float | None = None
        self.rows: list[Row] = []

    def run(self, parts: Sequence[str] | None = None) -> list[Row]:
        """Run the named parts (None: all) and return the rows. Raises ValueError for others."""
        known: dict[str, Callable[[], list[Row]]] = {
            "chunking": self.chunking,
            "capacity": self.capacity,
            "overload": self.overload,
            "lars": lambda: lars_rows(self._setting) + lars_rows(self._setting, load=0.6),
            "cost": lambda: cost_rows(self._setting),
            "fidelity": self.fidelity,
            "live": self.live,
            "processor": self.processor,
            "door": lambda: door_rows(self._setting, self._profile, self._tell),
            "peers": self.peers,
        }
        unknown = sorted(set(parts or ()) - set(known))
        if unknown:
            raise ValueError(f"part {unknown[0]!r} is unknown, allowed {', '.join(known)}")
        for part in parts or known:
            self._tell(f"part {part}")
            self.rows += known[part]()
        return self.rows

    def chunking(self) -> list[Row]:
        """A long prompt, alone and beside readers."""
        setting, how = self._setting, f"simulated with {self._setting.profile}"
        if self._measure is not None:
            profile = self._measure(self._tell)
            costs = IterationCosts.of(profile)
            setting = replace(setting, costs=costs, profile=profile.name)
            how = (
                f"simulated with what iterations took here just before: {profile.name}, "
                f"{profile.packing}, {profile.threads} thread"
            )
        return chunking_rows(setting.simulated, setting.costs, how)

    def capacity(self) -> list[Row]:
        """The highest rates, ours against others."""
        rows, self._capacity_qps = capacity_rows(self._setting, self._tell)
        return rows

    def overload(self) -> list[Row]:
        """At 1.5 times our capacity."""
        return overload_rows(self._setting, self._our_capacity(), self._tell)

    def fidelity(self) -> list[Row]:
        """The simulator against the timed device."""
        return fidelity_rows(self._setting, self._our_capacity(), self._tell)

    def live(self) -> list[Row]:
        """On a decoder, where there is one."""
        if self._checkpoint is None:
            reason = "no decoder: give its checkpoint with --checkpoint and its profile"
            return [skipped(f"live/{name}", reason) for name in ("chunking", "points")]
        make, vocab_size = decoder_of(self._checkpoint, self._packing)
        run = live_runner(self._setting.costs, make, vocab_size)
        return self._served(run, "live", f"{self._checkpoint.name}, {self._packing}, in real time")

    def processor(self) -> list[Row]:
        """The same on a decoder in processor time, which neighbours do not change."""
        if self._checkpoint is None:
            reason = "no decoder: give its checkpoint with --checkpoint and its profile"
            return [skipped(f"processor/{name}", reason) for name in ("chunking", "points")]
        make, vocab_size = decoder_of(self._checkpoint, self._packing)
        run = processor_runner(self._setting.costs, make(), vocab_size, kv_tokens=_KV_TOKENS)
        how = f"{self._checkpoint.name}, {self._packing}, in processor time"
        return self._served(run, "processor", how)

    def _served(self, run: StreamRunner, name: str, how: str) -> list[Row]:
        """Return figures of chunking and points of attainment by load, served by a decoder."""
        rows = [
            row(
                r["figure"].replace("streams/", f"streams/{name}/"),
                r["value"],
                r["unit"],
                r["detail"],
            )
            for r in chunking_rows(run, self._setting.costs, how)
        ]
        capacity_qps = self._our_capacity()
        return rows + live_point_rows(self._setting, run, capacity_qps, self._tell, name, how)

    def peers(self) -> list[Row]:
        """Against llama.cpp's server, where both have their weights."""
        return peer_rows(PeerSetting(self._checkpoint, self._gguf, self._profile), self._tell)

    def _our_capacity(self) -> float:
        if self._capacity_qps is None:
            found = [capacity_of(self._setting, OURS, seed) for seed in self._setting.seeds]
            self._capacity_qps = sum(each.rate_qps for each in found) / len(found)
            self._tell(f"our capacity, simulated: {self._capacity_qps:.3f} streams/s")
        return self._capacity_qps


def decoder_of(folder: Path, packing: str = "views") -> tuple[Callable[[], IterationExecutor], int]:
    """Return what makes an executor of a decoder's checkpoint, and its vocabulary's size.

    Raises ImportError where decoders are not installed, CheckpointError for a bad folder.
    """
    from supernet.checkpoint import load_checkpoint

    executors = importlib.import_module(_DECODER)
    checkpoint: Any = load_checkpoint(folder)

    def make() -> IterationExecutor:
        return executors.StreamExecutor(checkpoint, capacity_tokens=_KV_TOKENS, packing=packing)

    return make, int(checkpoint.definition.config.vocab_size)
