"""Fixtures that every package's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One intra-op thread: tests share few cores with servers and loads that they start."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _global_state_is_restored() -> Iterator[None]:
    """Fail a test that changes torch's defaults or draws from a global random generator."""
    import torch

    before = (torch.get_default_dtype(), torch.get_num_threads())
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    yield
    torch.set_num_threads(before[1])
    assert torch.get_default_dtype() == before[0], "the test changed torch's default dtype"
    assert (np.random.get_state()[1] == state).all(), "the test drew from numpy's global RNG"  # type: ignore[index]
