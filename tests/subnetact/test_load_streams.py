"""Which executor a decoder gets on a device; of CUDA with a CPU in place of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from subnetact.cuda.accelerator import HostAccelerator
from subnetact.cuda.cuda_stream_executor import CudaStreamExecutor
from subnetact.decoding.linear_forms import has_form
from subnetact.decoding.ragged_batch import Chunk
from subnetact.load_streams import STREAM_PACKINGS, load_stream_executor
from subnetact.profiling.iteration_profiler import measure_iterations
from supernet import Checkpoint
from supernet.low_bit.low_bit_weights import LowBitWeights


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "subnetact.cuda.cuda_accelerator.CudaAccelerator", lambda device: HostAccelerator()
    )


@pytest.mark.parametrize("packing", [None, *STREAM_PACKINGS["cpu"]])
def test_on_a_cpu_weights_are_read_as_asked(decoder: Checkpoint, packing: str | None) -> None:
    if packing is not None and not has_form(packing):
        pytest.skip(f"no {packing} linear layers in this build of torch")
    executor = load_stream_executor(decoder, packing=packing, capacity_tokens=128)
    assert (executor.packing, executor.dtype) == (packing or "views", "float32")
    assert executor.device.type == "cpu"
    assert executor.cache.table.block_tokens == 64
    assert executor.warm_up() == 0


def test_on_cuda_decodes_of_as_many_streams_as_run_are_captured(
    decoder: Checkpoint, stand_in: None
) -> None:
    executor = load_stream_executor(
        decoder, device="cuda", capacity_tokens=256, most_decodes=5, dtype="float32"
    )
    assert isinstance(executor, CudaStreamExecutor)
    assert executor.cache.table.block_tokens == 16
    assert executor.warm_up() == len(decoder.subnets) * 4 * 2  # 1, 2, 4, 8 decodes; two contexts
    for i in range(5):
        executor.run(executor.subnet_ids[0], [Chunk(i, (1, 2))])
    executor.run(executor.subnet_ids[-1], [Chunk(i, (3,)) for i in range(5)])
    assert executor.graph_status.replays == 1
    executor.close()
    no_graphs = load_stream_executor(
        decoder, device="cuda", capacity_tokens=256, graph_budget_bytes=0
    )
    assert no_graphs.dtype == "bfloat16"
    assert no_graphs.warm_up() == 0


def test_a_profile_says_what_it_was_measured_with(decoder: Checkpoint, stand_in: None) -> None:
    one = decoder.subnet_ids[:1]
    executor = load_stream_executor(
        decoder, device="cuda", capacity_tokens=2048, most_decodes=2, subnet_ids=one
    )
    profile = measure_iterations(
        executor, decoder, decodes=(1, 2), repeats=1, max_error=float("inf")
    )
    assert (profile.dtype, profile.packing, profile.threads) == ("bfloat16", "views", None)
    assert profile.subnet_ids == one
    assert executor.graph_status.replays > 0  # the graphs that serve were timed
    assert executor.cache.table.sequences == ()


def test_one_bit_widths_are_offered_where_they_run(decoder: Checkpoint, stand_in: None) -> None:
    entries = tuple(replace(s, precision="signed_binary") for s in decoder.subnets)
    one_bit = replace(
        decoder,
        low_bit=LowBitWeights.of(decoder.state, decoder.definition),
        low_bit_subnets=entries,
        norm_statistics={s.subnet_id: {} for s in (*decoder.subnets, *entries)},
    )
    names = tuple(form.subnet_id for form in one_bit.forms)
    assert len(names) == 2 * len(decoder.subnets)
    assert load_stream_executor(one_bit, capacity_tokens=64).subnet_ids == names
    on_cuda = load_stream_executor(one_bit, device="cuda", capacity_tokens=64)
    assert on_cuda.subnet_ids == decoder.subnet_ids


def test_what_a_device_does_not_have_is_refused(decoder: Checkpoint, stand_in: None) -> None:
    for settings, message in (
        (
            {"packing": "graph"},
            "packing is 'graph', of a decoder on cpu allowed views, packed",
        ),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', of a decoder on cpu allowed float32"),
        ({"device": "cuda", "packing": "half"}, "packing is 'half', .* on cuda allowed views"),
        ({"device": "cuda", "dtype": "int8"}, "dtype is 'int8', .* allowed bfloat16, float16"),
        ({"device": "xpu"}, "device is 'xpu', allowed cpu or cuda"),
    ):
        with pytest.raises(ValueError, match=message):
            load_stream_executor(decoder, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_is_refused(decoder: Checkpoint) -> None:
    with pytest.raises(ValueError, match="no CUDA device is available; use cpu"):
        load_stream_executor(decoder, device="cuda")
