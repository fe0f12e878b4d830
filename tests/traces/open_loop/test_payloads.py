from __future__ import annotations

import json

import numpy as np
import pytest

from traces.open_loop.payloads import Payloads, load_payloads, noise_payloads
from traces.open_loop.target import Model, TensorSpec
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
        (None, None, r"images\.npy: no such file; a payload folder needs it as numbers"),
        (np.zeros((0, 8, 8), np.uint8), None, r"holds uint8 \(0, 8, 8\), expected numbers"),
        (np.zeros(4, np.uint8), None, r"holds uint8 \(4,\), expected numbers"),
        (np.array([["a"], ["b"]]), None, "holds <U1"),
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


def spec(datatype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=shape)


def test_samples_take_the_type_of_the_model_where_their_values_survive():
    bytes_ = Payloads(np.arange(8, dtype=np.uint8).reshape(2, 4), None)
    fitted = bytes_.fitted(spec("FP32", -1, 4))
    assert fitted.images.dtype == np.float32
    np.testing.assert_array_equal(fitted.images, bytes_.images)
    assert bytes_.fitted(spec("UINT8", -1, -1)).images.shape == (2, 4)
    assert bytes_.fitted(spec("INT16", 1, 4)).images.dtype == np.int16
    for datatype, message in (("INT8", "the model takes INT8"), ("BYTES", "is BYTES; a replay")):
        with pytest.raises(TraceError, match=message):
            bytes_.fitted(spec(datatype, -1, 4))


def test_a_first_size_other_than_one_belongs_to_the_sample():
    assert spec("FP32", 3, 8).sample_shape == (3, 8)
    assert spec("FP32", 1, 8).sample_shape == (8,)
    assert noise_payloads(model("FP32", 3, 8), 0).images.shape == (64, 3, 8)


def model(*tensor: object, **parameters: object) -> Model:
    return Model(name="m", tensor=spec(*tensor), parameters=parameters)


def test_noise_is_drawn_from_the_range_that_the_model_names():
    text = model("INT64", -1, -1, input_range=[0, 30521], max_tokens=128)
    ids = noise_payloads(text, 0).images
    assert (ids.shape, ids.dtype) == ((64, 128), np.int64)
    assert ids.max() > 30_000
    for told in ([5, 1], [0, 2**40], "0 to 9", [0], None):
        drawn = noise_payloads(model("INT16", -1, 9, input_range=told), 0).images
        assert (drawn.min(), drawn.max()) == (0, 127), "a range that can't be is left alone"
    with pytest.raises(TraceError, match="give samples"):
        noise_payloads(model("INT64", -1, -1, max_tokens="many"), 0)


def test_noise_is_seeded_and_fills_the_type():
    first, again, other = (noise_payloads(model("UINT8", -1, 9), s).images for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert first.min() < 10
    assert first.max() > 245
    assert 0 <= noise_payloads(model("FP16", -1, 9), 0).images.min() < 0.1
    with pytest.raises(TraceError, match="-1 being any size: give samples"):
        noise_payloads(model("FP32", -1, -1), 0)
