"""One draw of blocks for all trials of a plan: the block bootstrap, paired.

Every candidate is judged on the very same redrawn traces (Künsch, "The Jackknife and the Bootstrap
for General Stationary Observations", 1989): a redraw that was lucky for one was as lucky for the
others, so a difference between two is theirs, and needs fewer redraws to be seen.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

RESAMPLES = 400
BLOCKS_TOGETHER = 3  # neighbours are alike: they are drawn together
_SEED = 0

Places = npt.NDArray[np.int64]


@lru_cache(maxsize=8)
def common_draw(num_blocks: int) -> Places:
    """Return the blocks of each redrawn trace, (RESAMPLES, num_blocks); read only, always the same.

    Blocks follow one another in threes, from a place that is drawn, and around the end.
    """
    rng = np.random.default_rng(_SEED)
    starts = rng.integers(0, num_blocks, (RESAMPLES, -(-num_blocks // BLOCKS_TOGETHER)))
    places = (starts[:, :, None] + np.arange(BLOCKS_TOGETHER)) % num_blocks
    drawn = places.reshape(RESAMPLES, -1)[:, :num_blocks]
    drawn.flags.writeable = False
    return drawn


def redrawn_sums(values: npt.NDArray[np.float64 | np.int64]) -> npt.NDArray[np.float64]:
    """Return the sum over the blocks of each redrawn trace, (RESAMPLES,)."""
    return np.asarray(values)[common_draw(len(values))].sum(axis=1, dtype=np.float64)
