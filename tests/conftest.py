"""Fixtures that every package's tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from supernet import (
    Arch,
    Checkpoint,
    InputSpec,
    ServedSubnet,
    SupernetDefinition,
    cost,
    define_supernet,
    load_checkpoint,
    save_checkpoint,
)


def random_statistics(
    definition: SupernetDefinition, arch: Arch, seed: int
) -> dict[str, torch.Tensor]:
    """Statistics that no other subnet has."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(shape, generator=generator) + 0.5
        for name, shape in definition.buffer_shapes(arch).items()
        if not name.endswith("num_batches_tracked")
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try what measures time once more before it counts as failed: a machine can stand still."""
    for item in items:
        if item.get_closest_marker("alone"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(autouse=True, scope="module")
def _garbage_is_young() -> None:
    """Keep what was there before a file of tests out of the garbage collector's full passes.

    Over half a million objects, what the imports of all tests make, one stands for 0.4 s: longer
    than some deadlines.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled graphs are kept in a folder of the tests' own, and made there.

    Machine code is named by its sources, so sessions may share what was compiled.
    """
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        for name in ("compiled", "compiled-nodes"):
            with suppress(OSError):  # else it is compiled anew
                (shared / "supernet" / name).mkdir(mode=0o700, parents=True, exist_ok=True)
                (folder / name).symlink_to(shared / "supernet" / name)
        patch.setenv("SUPERNET_CACHE_DIR", str(folder))
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One intra-op thread: tests share few cores with servers and loads that they start."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _module_draws_the_same() -> None:
    """What a file's own fixtures draw from torch does not depend on the files before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _global_state_is_restored() -> Iterator[None]:
    """Fail a test that changes torch's defaults or draws from numpy's global generator.

    Torch's is seeded: weights that nobody seeds are the same whichever tests ran before.
    """
    torch.manual_seed(0)
    before = (torch.get_default_dtype(), torch.get_num_threads())
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    yield
    torch.set_num_threads(before[1])
    assert torch.get_default_dtype() == before[0], "the test changed torch's default dtype"
    assert (np.random.get_state()[1] == state).all(), "the test drew from numpy's global RNG"  # type: ignore[index]


@pytest.fixture(scope="session")
def statistics_of(tiny: SupernetDefinition) -> Callable[[Arch, int], dict[str, torch.Tensor]]:
    """Statistics of an arch, drawn from a seed."""
    return partial(random_statistics, tiny)


@pytest.fixture(scope="session")
def tiny() -> SupernetDefinition:
    """144 archs, 8x8 grey images, under 20,000 parameters."""
    return define_supernet("resnet_tiny")


@pytest.fixture(scope="session")
def checkpoint_folder(tiny: SupernetDefinition, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights whose three subnets have statistics of their own."""
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    archs = tiny.space.ladder()[:3]
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(t.shape, generator=generator) * 0.3 if t.is_floating_point() else t
        for name, t in tiny.build().state_dict().items()
    }
    save_checkpoint(
        Checkpoint(
            name="tiny",
            definition=tiny,
            input=InputSpec(channels=1, height=8, width=8, mean=(0.5,), std=(0.25,)),
            state={n: t.abs() + 0.5 if n.endswith("running_var") else t for n, t in state.items()},
            norm_statistics={
                a.subnet_id: random_statistics(tiny, a, i) for i, a in enumerate(archs)
            },
            subnets=tuple(
                ServedSubnet(
                    arch=a, accuracy=0.5 + i / 10, ci95=(0.4, 0.9), **cost(tiny, a)._asdict()
                )
                for i, a in enumerate(archs)
            ),
        ),
        folder,
    )
    return folder


@pytest.fixture(scope="session")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    """The same, loaded."""
    return load_checkpoint(checkpoint_folder)
