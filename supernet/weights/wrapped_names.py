"""Names of tensors without what was wrapped around the network when it was saved.

Two kinds. Wrappers of modules put a name of their own somewhere into every path (torch.compile,
data parallel, FSDP, activation checkpointing, an average of the weights), also around inner
modules, in any order. And a network that was an attribute of something else, such as a Lightning
module's `model`, has that path before every name; which it is follows from the names expected.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

T = TypeVar("T")

# None of these is the name of a layer in any network that is read here.
_WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DistributedDataParallel, AveragedModel, DeepSpeed
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",  # Lightning Fabric
        "_original_module",
    }
)
_COUNTERS = frozenset({"n_averaged"})  # of AveragedModel


def without_wrappers(tensors: Mapping[str, T]) -> dict[str, T]:
    """Leave wrappers' names out, wherever they are; names that would become one stay."""
    kept = {name: t for name, t in tensors.items() if name not in _COUNTERS}
    bare = {_bare(name): t for name, t in kept.items()}
    return bare if len(bare) == len(kept) else kept


def without_prefix(tensors: Mapping[str, T], expected: Collection[str]) -> dict[str, T]:
    """Leave out the path before most of the `expected` names, if they have one in common.

    Names that do not begin with it stay as they are. Raises ValueError when there are several such
    paths, naming them.
    """
    wanted = set(expected)
    counts: dict[str, int] = {}
    for name in tensors:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                path = "".join(f"{part}." for part in parts[:i])
                counts[path] = counts.get(path, 0) + 1
    most = max(counts.values(), default=0)
    best = sorted((path for path, count in counts.items() if count == most), key=len)
    if not best or not best[0] or 2 * most < len(wanted):
        return dict(tensors)
    if not all(path.startswith(best[0]) for path in best):
        raise ValueError(
            f"the weights are there {len(best)} times, under {', '.join(best)}; leave out all but "
            f"one, such as --ignore '{best[-1]}*'"
        )
    path = best[0]
    return {name.removeprefix(path): t for name, t in tensors.items()}


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
