"""A decoder on worker processes of its replica: whether settings ask for them, and starting them.

The profile says so: one that was measured on a grid of workers (`supernet profile --shards N
--stages N`) has its costs, and the context from which shards pay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from serve.config import ServeConfig
from serve.hosts.load_device import read_profile
from serve.hosts.several_models import each_model
from slackfit.profile import LatencyProfile
from slackfit.streams.iteration_cost import IterationCosts, has_iterations

if TYPE_CHECKING:
    from subnetact.parallel.parallel_executor import ParallelExecutor
    from supernet.checkpoint import Checkpoint


def count_workers(config: ServeConfig) -> int:
    """Return how many worker processes a replica of these settings starts, of all its models.

    Raises ServeConfigError or ProfileError as reading the profiles does.
    """
    return sum(map(_workers_of, each_model(config)))


def _workers_of(config: ServeConfig) -> int:
    if config.device != "cpu" or config.profile is None:
        return 0
    profile = read_profile(config.profile)
    parallel = IterationCosts.of(profile).parallel if has_iterations(profile) else None
    return 0 if parallel is None else parallel.shards * parallel.stages


def start_workers(
    config: ServeConfig,
    checkpoint: Checkpoint,
    profile: LatencyProfile,
    *,
    packing: str,
    kv_tokens: int,
    block_tokens: int,
) -> ParallelExecutor:
    """Start the grid of workers that a profile was measured on, with `kv_tokens` over its shards.

    Workers are taken to hang in half the time that the engine gives the whole device, so one that
    does costs its streams and not the replica. Raises ValueError as `ParallelExecutor`.
    """
    from subnetact.parallel.parallel_executor import ParallelExecutor

    costs = IterationCosts.of(profile)
    shards = 1 if costs.parallel is None else costs.parallel.shards
    blocks = -(-kv_tokens // (shards * block_tokens))
    return ParallelExecutor.for_costs(
        checkpoint,
        costs,
        folder=config.checkpoint,
        capacity_tokens=blocks * block_tokens,
        block_tokens=block_tokens,
        threads=config.threads,
        packing=packing,
        hung_after_s=config.hung_after_s / 2,
    )
