"""What an idle device is given to run, so that a fault is found before a query finds it."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)


def had_memory(probe: Callable[[], object], what: str) -> bool:
    """Run `probe`, of `what`; return whether there was memory for it.

    That there is none may pass: no reason to give the device up. Raises what else `probe` raises.
    """
    try:
        probe()
    except (RuntimeError, MemoryError) as error:  # libraries say so by either
        from subnetact.device import is_out_of_memory  # imports torch

        if not is_out_of_memory(error):
            raise
        logger.warning("an idle device has no memory for %s: %s", what, error)
        return False
    return True
