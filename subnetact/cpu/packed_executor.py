"""`PackedExecutor`: runs batches on a CPU, with the hot slices packed for oneDNN.

The plain twin is `EagerExecutor`, and both give the same results. Without a budget, or with one
that has room, every subnet's slices are packed at the start. With less room, what each slice saves
is measured first, what saves most is packed, and a `ResidencyKeeper` changes it with the mix of
subnets that is served (docs/decisions/024-residency-follows-the-mix.md). Without oneDNN (another
build, another machine) everything runs on views, with one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from slackfit.residency import ValuePerByte
from subnetact.cache import SLICE_PACKINGS, SubgraphCache
from subnetact.cpu.packed_supernet import PackedSupernet
from subnetact.cpu.packing import is_available
from subnetact.cpu.precision import Bits, bits_of
from subnetact.cpu.residency_keeper import ResidencyKeeper
from subnetact.cpu.resident_weights import resident_weights
from subnetact.cpu.savings import measure_savings
from subnetact.executor import StagingExecutor, check_batch, warm_up
from subnetact.norms import FoldedNorms
from subnetact.threads import ThreadCount, computing_with
from supernet.checkpoint import Checkpoint

_START_REPEATS = (
    2  # runs of each subnet in each form at the start, where a budget asks for choosing
)


class PackedExecutor(StagingExecutor):
    """An `Executor` on a CPU whose subnets share a `SubgraphCache`."""

    device = "cpu"
    dtype = "float32"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        packing: str = "folded",
        threads: int | None = 1,
        max_batch_size: int = 16,
        subnet_ids: Iterable[str] | None = None,
        budget_bytes: int | None = None,
    ):
        """Register the subnets (default: all served ones) and pack what `budget_bytes` allows.

        `packing` is `folded` or `shared`. Raises CheckpointError for a subnet that the checkpoint
        does not serve, ValueError for another packing or a number that is out of range.
        """
        for name, value in (("threads", threads), ("max_batch_size", max_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, allowed 1 or more")
        self.packing = packing
        self.threads = threads
        self.max_batch_size = max_batch_size
        self.sample = checkpoint.sample
        self.num_classes = checkpoint.num_classes
        self._input = checkpoint.input
        self._thread_count = ThreadCount(threads)
        self.bits = bits_of(checkpoint)
        self.details = (
            ""
            if self.bits == Bits()
            else f"kept: weights in {self.bits.weights} bit, norms in {self.bits.norms} bit"
        )
        state = resident_weights(checkpoint.state, self.bits.weights)
        wanted = checkpoint.subnet_ids if subnet_ids is None else tuple(subnet_ids)
        self.net = PackedSupernet(
            checkpoint.definition,
            state,
            FoldedNorms(checkpoint.definition, state, self.bits.norm_dtype),
            SubgraphCache(budget_bytes),
            max_programs=max(64, len(wanted)),
        )
        for subnet_id in wanted:
            arch = checkpoint.subnet(subnet_id).arch
            self.net.register(arch, checkpoint.norm_statistics[subnet_id])
        if not is_available():
            warnings.warn(
                "this build of torch cannot pack for oneDNN here: all subnets run on views, "
                "slower, with the same results",
                RuntimeWarning,
                stacklevel=2,
            )
        with computing_with(threads):  # layouts depend on it
            self._keeper = self._fill(packing, budget_bytes)

    def _fill(self, packing: str, budget_bytes: int | None) -> ResidencyKeeper | None:
        """Pack everything, or, where the budget has no room for it, what saves most seconds.

        Then the returned keeper follows the mix of subnets. No mix is known at the start: all
        subnets count alike.
        """
        slices = {form.key: form for i in self.subnet_ids for form in self.net.slices(i, packing)}
        whole_bytes = sum(form.num_bytes for form in slices.values())
        if not budget_bytes or whole_bytes <= budget_bytes:
            self.net.load(slices.values() if budget_bytes != 0 else ())
            return None
        packings = ("shared",) if packing == "shared" else SLICE_PACKINGS
        savings, forms = measure_savings(
            self.net, self.subnet_ids, repeats=_START_REPEATS, packings=packings
        )
        mix = dict.fromkeys(self.subnet_ids, 1.0 / len(self.subnet_ids))
        chosen = savings.fill(mix, budget_bytes)
        self.net.load(form for key, form in forms.items() if key in chosen)
        policy = ValuePerByte(savings, budget_bytes, resident=chosen)
        threads = self.threads

        def prepare() -> None:
            torch.set_num_threads(threads or torch.get_num_threads())

        keeper = ResidencyKeeper(self.net, policy, savings, forms, prepare=prepare)
        keeper.start()
        return keeper

    @property
    def cache(self) -> SubgraphCache:
        """What is packed, and how often it was found."""
        return self.net.cache

    @property
    def subnet_ids(self) -> tuple[str, ...]:
        """Ids of the subnets that can be run."""
        return self.net.subnet_ids

    @torch.inference_mode()
    def launch(self, subnet_id: str, slots: Sequence[np.ndarray]) -> np.ndarray:
        """See `Executor`: run the batch and return its logits."""
        samples = self.sample.stacked(slots)
        check_batch(len(samples), self.max_batch_size)
        self._thread_count.use()
        resolution = self.net.arch(subnet_id).resolution
        x = self._input.as_served(torch.from_numpy(samples), resolution)
        if self._keeper is None:
            return self.net.run(subnet_id, x).float().numpy()
        with self._keeper.batch(subnet_id):
            return self.net.run(subnet_id, x).float().numpy()

    def result(self, launched: np.ndarray) -> np.ndarray:
        """See `Executor`."""
        return launched

    def warm_up(self) -> None:
        """Run every subnet at the largest and the smallest batch size."""
        warm_up(self)

    def counts(self) -> Mapping[str, int]:
        """See `Executor`; besides, the slices that the budget, or memory, had no room for."""
        return self.net.cache.tally()

    def close(self) -> None:
        """Let go of what is packed."""
        if self._keeper is not None:
            self._keeper.close()
        self.net.cache.clear()
