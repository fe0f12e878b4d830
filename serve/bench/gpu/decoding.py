"""Part `decoding` of `serve.bench.gpu`: a decoder's iterations on the device, right and how fast.

Half and full width, decodes by graphs and eagerly, parts of prompts; logits are held against the
extracted subnet in float32, a difference is a failure.
"""

from __future__ import annotations

from functools import partial
from statistics import median

import numpy as np
import torch

from serve.bench.decoder.pieces import occupy
from serve.bench.decoder.random_decoder import random_checkpoint
from serve.bench.gpu.cases import GpuBench, brief, ratio
from subnetact.cuda.cuda_stream_executor import CudaStreamExecutor
from subnetact.decoding.ragged_batch import Chunk
from supernet import Checkpoint, define_supernet, extract

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}  # of the largest logit
_PROMPT, _DECODED = 40, 4
_NO_GRAPH = "not all of these decodes ran by graphs, see the row of graphs"


def decoding(bench: GpuBench) -> None:
    """Run each decoder in both dtypes."""
    for variant in bench.settings.decoders:
        checkpoint = random_checkpoint(define_supernet(variant))
        for dtype in _TOLERANCE:
            if bench.left_s < 0:
                return
            graphs, eager = (_executor(bench, checkpoint, dtype, budget) for budget in (None, 0))
            captured = graphs.warm_up()
            name = f"decoding/{variant}/{str(dtype).removeprefix('torch.')}"
            refused = graphs.graph_status.refusals
            bench.record(f"{name}/graphs", captured, "count", f"refused: {refused or 'none'}"[:300])
            for how, executor in (("graph", graphs), ("eager", eager)):
                _hold_equal(bench, f"{name}/{how}", executor, checkpoint, dtype)
            if not graphs.graph_status.replays:
                bench.failures.append(f"{name}/graph: nothing was replayed")
            for context in bench.settings.decode_contexts:
                for count in bench.settings.decode_counts:
                    _time(bench, f"{name}/c{context}/n{count}", graphs, eager, count, context)
            graphs.close()
            eager.close()


def _executor(
    bench: GpuBench, checkpoint: Checkpoint, dtype: torch.dtype, graph_budget_bytes: int | None
) -> CudaStreamExecutor:
    counts, contexts = bench.settings.decode_counts, bench.settings.decode_contexts
    return CudaStreamExecutor(
        checkpoint,
        bench.new_accelerator(),
        capacity_tokens=(max(counts) + 1) * (max(contexts) + 16),
        dtype=dtype,
        decode_counts=counts,
        graph_contexts=contexts,
        graph_budget_bytes=graph_budget_bytes,
    )


def _hold_equal(
    bench: GpuBench,
    name: str,
    executor: CudaStreamExecutor,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
) -> None:
    """Read a prompt in two parts beside another stream's, decode, and compare every step."""
    definition, differences = checkpoint.definition, [0.0]
    vocabulary = definition.config.num_classes
    ids = [(7 * i + 3) % vocabulary for i in range(_PROMPT + _DECODED)]
    for subnet in checkpoint.subnets:
        net = extract(checkpoint.state, definition, subnet.arch).to(bench.device)
        expected = net(torch.tensor([ids], device=bench.device))[0].float().cpu()
        half = _PROMPT // 2
        executor.run(subnet.subnet_id, [Chunk("a", tuple(ids[:half]), False), Chunk("b", (1, 2))])
        rows = [executor.run(subnet.subnet_id, [Chunk("a", tuple(ids[half:_PROMPT]))])[0]]
        for token in ids[_PROMPT:]:
            steps = [Chunk("b", (token,)), Chunk("a", (token,))]
            rows.append(executor.run(subnet.subnet_id, steps)[1])
        difference = (torch.stack(rows) - expected[_PROMPT - 1 :]).abs().max()
        differences.append(float(difference / expected.abs().max()))
        executor.release("a")
        executor.release("b")
    worst = float(np.max(differences))  # NaN if one is
    if not worst <= _TOLERANCE[dtype]:
        bench.failures.append(f"{name}: {worst:.4g} above {_TOLERANCE[dtype]:g}")
    detail = (
        "largest difference from the extracted float32 subnet over its largest logit; "
        f"{executor.graph_status.replays} replays"
    )
    bench.record(f"{name}/over_extracted", worst, "relative", detail)


def _time(
    bench: GpuBench,
    name: str,
    graphs: CudaStreamExecutor,
    eager: CudaStreamExecutor,
    count: int,
    context: int,
) -> None:
    """Iterations of `count` decodes within `context` tokens, and one that reads a prompt."""
    half, full = graphs.subnet_ids
    decodes = [Chunk(i, (1,)) for i in range(count)]
    prompt = [Chunk("prompt", (1,) * min(128, context // 2))]
    iterations = {
        "half_graph": (graphs, half, decodes, context - 1),
        "full_graph": (graphs, full, decodes, context - 1),
        "full_eager": (eager, full, decodes, context - 1),
        "prompt_half": (eager, half, prompt, 16),
        "prompt_full": (eager, full, prompt, 16),
    }
    replays = graphs.graph_status.replays
    samples_s = bench.interleaved(
        {
            each: partial(executor.run, subnet_id, chunks)
            for each, (executor, subnet_id, chunks, _) in iterations.items()
        },
        before={
            each: partial(occupy, executor, chunks, held)
            for each, (executor, _, chunks, held) in iterations.items()
        },
    )
    for executor, _, chunks, _ in iterations.values():
        for chunk in chunks:
            executor.release(chunk.sequence)
    replays = graphs.graph_status.replays - replays
    by_graphs = replays == 2 * (3 + len(samples_s["full_graph"]))
    detail = brief(samples_s)
    for figure, one, other in (
        ("half_over_full", "half_graph", "full_graph"),
        ("graph_over_eager", "full_graph", "full_eager"),
        ("prompt_half_over_full", "prompt_half", "prompt_full"),
    ):
        if by_graphs or one == "prompt_half":
            bench.record(f"{name}/{figure}", ratio(samples_s, one, other), "ratio", detail)
        else:
            bench.absent(f"{name}/{figure}", "ratio", _NO_GRAPH)
    if by_graphs:
        full_s = median(samples_s["full_graph"])
        bench.record(f"{name}/tokens_per_s", count / full_s, "tokens/s", detail)
    else:
        bench.absent(f"{name}/tokens_per_s", "tokens/s", _NO_GRAPH)
