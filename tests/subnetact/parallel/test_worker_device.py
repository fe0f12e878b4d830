"""What workers exchange over follows from the device."""

from __future__ import annotations

import pytest
import torch

from subnetact.decoding.decoder_weights import DecoderWeights
from subnetact.parallel import worker_device
from subnetact.parallel.parallel_executor import ParallelExecutor
from subnetact.parallel.worker_device import GLOO, MEMORY, NCCL, backend_for
from subnetact.parallel.worker_grid import WorkerGrid
from supernet import Checkpoint


@pytest.mark.parametrize(("can_share", "near"), [(True, MEMORY), (False, GLOO)])
def test_nccl_takes_a_device_for_each_worker(
    can_share: bool, near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_device, "can_share_memory", lambda: can_share)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    for devices, expected in ((4, NCCL), (3, near)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda devices=devices: devices)
        assert backend_for("cuda", 4) == expected
        assert backend_for("cpu", 4) == near
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert backend_for("cuda", 2) == near


def test_what_is_not_there_is_refused(decoder: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match="device is 'cuda', and there is none here; allowed cpu"):
        ParallelExecutor(decoder, WorkerGrid(shards=2), device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="packing is 'packed', on cuda allowed views"):
        ParallelExecutor(decoder, WorkerGrid(shards=2), device="cuda", packing="packed")
    with pytest.raises(ValueError, match="packing is 'int8', on meta allowed views"):
        DecoderWeights(decoder, form="int8", device="meta")
