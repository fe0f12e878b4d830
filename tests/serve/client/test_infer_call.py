"""A client's request as it travels."""

from __future__ import annotations

import numpy as np
import pytest

from serve.client.infer_call import make_infer_call


@pytest.mark.parametrize("dtype", [">i8", "<i8", ">i4", "<i4"])
def test_ids_travel_little_endian_whatever_they_were_kept_in(dtype: str):
    """Arrays of a file with the other order had been sent as they lay: 1 became 2**56."""
    ids = np.array([[1, 2, 3]], dtype=dtype)
    for given in (ids, ids[0]):
        call = make_infer_call("m", given, priority=0, min_accuracy=None, subnet=None)
        assert isinstance(call.samples, np.ndarray)
        assert call.samples.tobytes() == ids.astype(f"<{dtype[1:]}").tobytes()
        assert call.samples.dtype.name == f"int{8 * int(dtype[2:])}"
