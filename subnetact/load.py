"""`load_executor`: which executor a checkpoint gets on a device, in which packing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from subnetact.cache import SLICE_PACKINGS
from subnetact.executor import Executor
from subnetact.views.eager_executor import EagerExecutor
from supernet.checkpoint import Checkpoint, load_checkpoint

PACKINGS = {"cpu": ("graph", "views"), "cuda": (*SLICE_PACKINGS, "views")}
"""In which form weights may be read, by kind of device; the first that there is is the default."""
_DTYPES = {"cuda": ("bfloat16", "float16", "float32")}  # of slices; all else is float32


def mebibytes(number: float | None) -> int | None:
    """Return a limit in bytes; None, which is no limit, stays."""
    return None if number is None else int(number * 2**20)


def graph_folder() -> Path:
    """Where compiled graphs are kept: `SUPERNET_CACHE_DIR`, else the user's cache folder."""
    named = os.environ.get("SUPERNET_CACHE_DIR")
    if named:
        return Path(named) / "graphs"
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "supernet" / "graphs"


def load_executor(
    checkpoint: Checkpoint | str | Path,
    *,
    device: str = "cpu",
    threads: int | None = 1,
    max_batch_size: int = 16,
    subnet_ids: Iterable[str] | None = None,
    packing: str | None = None,
    budget_bytes: int | None = None,
    dtype: str | None = None,
    batch_sizes: Iterable[int] | None = None,
    graph_budget_bytes: int | None = None,
    choose_engines: bool = False,
) -> Executor:
    """Load a checkpoint folder (or take a loaded one) and make its subnets runnable.

    `packing` is `graph` or `views` on a CPU (docs/decisions/110-whole-graphs-on-the-cpu.md),
    `folded`, `shared`, `one_copy` or `views` on CUDA; None takes the first, on a CPU without
    onnxruntime `views`. Subnets in int8 run as graphs only, and are left out elsewhere.
    `budget_bytes` limits what is resident, on CUDA all weights on the device. `dtype` is `float32`
    or, for CUDA slices, `bfloat16` (the default there) or `float16`. `batch_sizes` and
    `graph_budget_bytes` say which CUDA graphs to capture (`CudaExecutor`). `choose_engines`
    measures which library runs each graph on a CPU faster, where there are two (`GraphExecutor`);
    later calls go by what was found. A checkpoint of a graph runs on a CPU, in one way.

    Raises CheckpointError when the folder or a subnet id is not what it should be, ValueError for
    another packing or dtype, or a device that is not there.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    _check_answers(checkpoint)
    if checkpoint.input.kind == "nodes":
        return _nodes(checkpoint, device, threads, max_batch_size, subnet_ids)
    packing, dtype = _form(device, packing, dtype)
    if packing == "graph":
        return _graphs(
            checkpoint, threads, max_batch_size, subnet_ids, budget_bytes, choose_engines
        )
    if packing == "views":
        return EagerExecutor(
            checkpoint,
            device=device,
            threads=threads,
            max_batch_size=max_batch_size,
            subnet_ids=subnet_ids,
        )
    from subnetact.cuda.cuda_accelerator import CudaAccelerator
    from subnetact.cuda.cuda_executor import CudaExecutor

    return CudaExecutor(
        checkpoint,
        CudaAccelerator(device),
        packing=packing,
        dtype=getattr(torch, dtype),
        max_batch_size=max_batch_size,
        batch_sizes=batch_sizes,
        subnet_ids=subnet_ids,
        budget_bytes=budget_bytes,
        graph_budget_bytes=graph_budget_bytes,
    )


def _check_answers(checkpoint: Checkpoint) -> None:
    """Raise ValueError for a checkpoint whose subnets give no answer in one run."""
    if checkpoint.definition.family.generates:
        raise ValueError(
            f"{checkpoint.name} is a decoder, which has no single answer: it makes text token by "
            "token (`supernet generate`, docs/decoder.md)"
        )


def _form(device: str, packing: str | None, dtype: str | None) -> tuple[str, str]:
    """Return packing and dtype on a device, the defaults for None. Raises ValueError for others."""
    kind = torch.device(device).type
    allowed = PACKINGS.get(kind, ("views",))
    packing = packing or default_packing(kind)
    if packing not in allowed:
        raise ValueError(f"packing is {packing!r}, allowed {', '.join(allowed)} on {device}")
    dtypes = _DTYPES.get(kind, ("float32",)) if packing != "views" else ("float32",)
    if dtype is not None and dtype not in dtypes:
        raise ValueError(
            f"dtype is {dtype!r}, allowed {', '.join(dtypes)} on {device} with packing {packing}"
        )
    return packing, dtype or dtypes[0]


def _nodes(
    checkpoint: Checkpoint,
    device: str,
    threads: int | None,
    max_batch_size: int,
    subnet_ids: Iterable[str] | None,
) -> Executor:
    if torch.device(device).type != "cpu":
        raise ValueError(f"device is {device!r}: nodes of a graph are sampled and run on cpu alone")
    from subnetact.nodes.node_executor import NodeExecutor

    return NodeExecutor(
        checkpoint, threads=threads, max_batch_size=max_batch_size, subnet_ids=subnet_ids
    )


def default_packing(kind: str) -> str:
    """Return the packing that a kind of device gets here; `graph` needs onnxruntime."""
    allowed = PACKINGS.get(kind, ("views",))
    can_compile = find_spec("onnxruntime") is not None and find_spec("onnx") is not None
    return allowed[0] if allowed[0] != "graph" or can_compile else "views"


def _graphs(
    checkpoint: Checkpoint,
    threads: int | None,
    max_batch_size: int,
    subnet_ids: Iterable[str] | None,
    budget_bytes: int | None,
    choose_engines: bool,
) -> Executor:
    from subnetact.cpu.graph_executor import GraphExecutor

    wanted = None if subnet_ids is None else tuple(subnet_ids)
    float_ids = None
    if wanted is not None:
        archs = [checkpoint.subnet(subnet_id).arch for subnet_id in wanted]
        float_ids = tuple(dict.fromkeys(arch.subnet_id for arch in archs))
    make_views = partial(
        EagerExecutor,
        checkpoint,
        threads=threads,
        max_batch_size=max_batch_size,
        subnet_ids=float_ids,
    )
    return GraphExecutor(
        checkpoint,
        make_views,
        threads=threads,
        max_batch_size=max_batch_size,
        subnet_ids=wanted,
        budget_bytes=budget_bytes,
        cache_folder=graph_folder(),
        choose_engines=choose_engines,
    )
