"""What a CUDA device will be asked in `test_cuda_device.py`, asked of a CPU in its place.

A device is there for minutes. What can be wrong in the questions is to be found before.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from subnetact.cuda.accelerator import HostAccelerator
from subnetact.device import device_name
from supernet import Checkpoint
from tests.subnetact.cuda import test_cuda_device as asked

pytestmark = [mark for mark in asked.pytestmark if mark.name == "filterwarnings"]


@pytest.fixture(autouse=True)
def _a_cpu_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("subnetact.cuda.cuda_accelerator", asked.__name__):
        monkeypatch.setattr(f"{place}.CudaAccelerator", lambda device="cuda": HostAccelerator())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device_name("cpu"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)


@pytest.mark.parametrize(
    ("packing", "dtype", "share"),
    [("folded", "bfloat16", None), ("shared", "float16", 0.5), ("one_copy", "float32", 0.0)],
)
def test_graphs_and_streams(
    checkpoint: Checkpoint, packing: str, dtype: str, share: float | None
) -> None:
    asked.test_graphs_and_streams_equal_the_extracted_subnet(checkpoint, packing, dtype, share)


def test_what_a_library_warns_of_fails_no_test_and_what_we_warn_of_does() -> None:
    """cuDNN warns of each plan that it tried in vain, torch of the older names of its settings."""
    with warnings.catch_warnings(record=True) as seen:  # by the filters that are set
        warnings.warn("Plan failed with a cudnnException", UserWarning, stacklevel=1)
    assert len(seen) == 1
    with pytest.raises(RuntimeWarning, match="no CUDA graph"):
        warnings.warn("no CUDA graph for a at batch 8", RuntimeWarning, stacklevel=1)


# Not those that need what a CPU has not: captures that fail, replays that are faster.
test_retirement = asked.test_graphs_outlive_the_retirement_of_their_siblings
test_a_profile = asked.test_a_profile_is_measured
test_a_decoder = asked.test_a_decoder_gives_the_logits_of_the_extracted_subnet
