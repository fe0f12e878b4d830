"""What one sample is on its way to a device."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import subnetact
import supernet
from supernet.sample import SampleSpec

IMAGE = SampleSpec(shape=(3, 4, 5))
TEXT = SampleSpec(shape=(6,), dtype="int32", highest=30521, pad=7)


def test_an_image_has_one_shape_and_one_type() -> None:
    samples = np.zeros((2, 3, 4, 5), dtype=np.uint8)
    assert IMAGE.checked(samples) is samples
    assert IMAGE.zeros(2).shape == samples.shape
    for wrong in (samples.astype(np.int32), samples[..., :4], samples[0]):
        with pytest.raises(ValueError, match=r"expected uint8 \(B, 3, 4, 5\)"):
            IMAGE.checked(wrong)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_ids_of_the_whole_vocabulary_are_taken_and_others_refused(dtype: type) -> None:
    ids = np.array([[0, 255, 256, 30521]], dtype=dtype)
    checked = TEXT.checked(ids)
    assert checked.dtype == np.int32
    assert checked.tolist() == ids.tolist()
    for wrong in (-1, 30522, 50_000):
        ids[0, 1] = wrong
        with pytest.raises(ValueError, match=f"a value is {wrong}, allowed 0 to 30521"):
            TEXT.checked(ids)
    with pytest.raises(ValueError, match=r"\(B, N\) with N from 1 to 6"):
        TEXT.checked(np.zeros((1, 7), dtype=dtype))
    with pytest.raises(ValueError, match="expected int32 or int64"):
        TEXT.checked(np.zeros((1, 3), dtype=np.uint8))


def test_a_batch_of_texts_is_as_long_as_the_longest_and_filled_up() -> None:
    parts = [np.array([[1, 2]], np.int32), np.array([[3], [4]], np.int32), TEXT.zeros(1)[:, :3]]
    batch = TEXT.stacked(parts)
    assert batch.tolist() == [[1, 2, 7], [3, 7, 7], [4, 7, 7], [0, 0, 0]]
    room = TEXT.zeros(5)
    assert TEXT.stacked(parts[:2], into=room).tolist() == [
        [1, 2] + [7] * 4,
        [3] + [7] * 5,
        [4] + [7] * 5,
    ]
    assert room[:1].tolist() == [[1, 2] + [7] * 4]


def test_a_batch_of_images_is_written_where_there_is_room(rng: np.random.Generator) -> None:
    parts = [IMAGE.noise(2, rng), IMAGE.noise(1, rng)]
    room = IMAGE.zeros(4)
    batch = IMAGE.stacked(parts, into=room)
    assert np.shares_memory(batch, room)
    assert np.array_equal(batch, np.concatenate(parts))
    assert IMAGE.stacked(parts[:1]) is parts[0], "nothing is copied that is whole already"
    parts[0].flags.writeable = False  # bytes as they were received
    assert IMAGE.stacked(parts[:1]).flags.writeable


def test_noise_is_drawn_from_the_whole_range(rng: np.random.Generator) -> None:
    assert TEXT.noise(2000, rng).max() > 30_000
    assert IMAGE.noise(100, rng).max() == 255


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": (0,)}, "sample shape is (0,), allowed sizes of 1 or more"),
        ({"shape": (4,), "highest": 256}, "highest is 256, allowed 0 to 255 (uint8)"),
    ],
)
def test_a_senseless_specification_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        SampleSpec(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize("package", [supernet, subnetact])
def test_the_names_of_a_package_are_those_it_imports_when_they_are_used(package) -> None:
    assert set(package.__all__) == set(package._HOMES)
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_a_timed_device_and_its_samples_come_without_torch() -> None:
    code = "import sys, serve.hosts.assemble; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


NODE = SampleSpec(shape=(1,), dtype="int64", highest=9)


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_a_node_is_an_id_with_or_without_its_dimension(dtype: str) -> None:
    for given in (np.array([3, 9], dtype), np.array([[3], [9]], dtype)):
        checked = NODE.checked(given)
        assert (checked.dtype, checked.tolist()) == (np.int64, [[3], [9]])
    alone = np.array([[4]])
    assert NODE.checked(alone) is alone
    assert NODE.checked(np.array([4], dtype)).tolist() == [[4]]
    for wrong in (10, -1):
        for shape in ((1,), (1, 1)):
            with pytest.raises(ValueError, match=f"a value is {wrong}, allowed 0 to 9"):
                NODE.checked(np.full(shape, wrong, dtype))
    with pytest.raises(ValueError, match=r"expected int32 or int64 \(B,\) or \(B, 1\)"):
        NODE.checked(np.zeros((2, 2), dtype))
    with pytest.raises(ValueError, match="samples are float64"):
        NODE.checked(np.zeros((1, 1)))
