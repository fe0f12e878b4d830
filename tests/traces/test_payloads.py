from __future__ import annotations

import json

import numpy as np
import pytest

from traces.payloads import load_payloads
from traces.trace import TraceError


def test_a_folder_is_read(tmp_path):
    images, labels = np.zeros((3, 1, 8, 8), dtype=np.uint8), np.arange(3)
    np.save(tmp_path / "images.npy", images)
    assert load_payloads(tmp_path).labels is None
    np.save(tmp_path / "labels.npy", labels)
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b", "c"]), encoding="utf-8")
    loaded = load_payloads(tmp_path)
    assert loaded.images.shape == (3, 1, 8, 8)
    np.testing.assert_array_equal(loaded.labels, labels)
    assert loaded.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (None, None, r"images\.npy: no such file; a payload folder needs it as uint8"),
        (np.zeros((2, 8, 8), np.uint8), None, r"holds uint8 \(2, 8, 8\), expected non-empty"),
        (np.zeros((2, 1, 8, 8), np.float32), None, "holds float32"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.zeros(3, int), r"expected int64 \(2,\), one per"),
    ],
)
def test_a_wrong_folder_is_named_with_what_is_expected(tmp_path, images, labels, message):
    if images is not None:
        np.save(tmp_path / "images.npy", images)
    if labels is not None:
        np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(TraceError, match=message):
        load_payloads(tmp_path)


def test_a_file_that_is_no_array_is_refused(tmp_path):
    (tmp_path / "images.npy").write_bytes(b"not an array")
    with pytest.raises(TraceError, match=r"not a readable \.npy file"):
        load_payloads(tmp_path)
