"""Pictures as people see them, and folders as people keep them, in training and in conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.config import DataConfig
from training.convert import READERS
from training.data.array_folder import DataError
from training.data.data import load_dataset
from training.data.image_files import ImageFiles
from training.data.pictures import read_picture

SIDE = 16
RAMP = np.linspace(0, 255, SIDE).astype(np.uint8)
Save = Callable[[Path], None]


def grey16(path: Path) -> None:
    """A ramp from black to white from left to right, in 16 bit."""
    Image.fromarray(np.tile(RAMP.astype(np.uint16) * 257, (SIDE, 1))).save(path)


def grey8(path: Path) -> None:
    Image.fromarray(np.tile(RAMP, (SIDE, 1))).save(path)


def turned(path: Path) -> None:
    """The same ramp, stored lying on its side and upright by EXIF's orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(np.tile(RAMP, (SIDE, 1)))
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def folder_of(root: Path, save: Save, *, suffix: str = "png", classes: str = "ab") -> Path:
    for split in ("train", "val"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                save(root / split / name / f"{i}.{suffix}")
    return root


def both_ways(folder: Path) -> list[np.ndarray]:
    """The first test picture (3, SIDE, SIDE) as training reads it, and as conversion does."""
    data = load_dataset(DataConfig(name="images", path=str(folder), size=SIDE, validation=0.3))
    assert isinstance(data.test, ImageFiles)
    spec = type(data.input)(**{**data.input.to_json(), "crop": 1.0})
    read = data.read_for(spec).test.take(torch.tensor([0]))
    converted = READERS["image-folder"](folder, SIDE)
    return [read.images[0].numpy(), converted.test.images[0]]


@pytest.mark.parametrize("save", [grey8, grey16, turned])
def test_a_ramp_is_a_ramp_however_it_is_stored(save: Save, tmp_path: Path) -> None:
    for picture in both_ways(folder_of(tmp_path, save)):
        for channel in picture.astype(int):
            assert np.abs(channel - RAMP[None, :]).max() <= 1


def test_a_photograph_is_turned_too(tmp_path: Path) -> None:
    for picture in both_ways(folder_of(tmp_path, turned, suffix="jpg")):
        assert np.abs(picture.astype(int) - RAMP).max() <= 12, "JPEG's own loss"


def test_what_has_no_known_range_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f.tif: a picture of fractions"):
        read_picture(tmp_path / "f.tif", str(tmp_path / "f.tif"))
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(DataError, match=r"i.tif: values from 70000 to 70000, allowed 16 bit"):
        read_picture(tmp_path / "i.tif", str(tmp_path / "i.tif"))


def test_an_orientation_that_is_broken_turns_nothing(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    Image.fromarray(np.tile(RAMP, (SIDE, 1))).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png", "a"))[0, :, 0], RAMP)


def test_what_is_hidden_is_no_data(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, grey8)
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    grey8(folder / "train" / ".ipynb_checkpoints" / "0-checkpoint.png")
    (folder / "train" / "a" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    (folder / "train" / "a" / ".hidden.png").mkdir()
    (folder / "train" / "a" / "folder.png").mkdir()
    (folder / "val" / ".DS_Store").write_bytes(b"\x00")
    data = load_dataset(DataConfig(name="images", path=str(folder), size=SIDE, validation=0.3))
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.validation) == 6
    converted = READERS["image-folder"](folder, SIDE)
    assert converted.classes == ("a", "b")
    assert len(converted.train.labels) == 6


def test_endings_are_known_in_any_case(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, lambda path: grey8(path), suffix="JPEG")
    assert len(READERS["image-folder"](folder, SIDE).train.labels) == 6
    data = load_dataset(DataConfig(name="images", path=str(folder), size=SIDE, validation=0.3))
    assert len(data.test) == 6


@pytest.mark.parametrize("read", ["train", "convert"])
@pytest.mark.parametrize(
    ("split", "message"),
    [("train", "only in train/: extra"), ("val", "only in val/: extra")],
)
def test_a_class_of_one_split_only_is_named(
    read: str, split: str, message: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, grey8)
    (folder / split / "extra").mkdir()
    grey8(folder / split / "extra" / "0.png")
    readers: dict[str, Callable[[], object]] = {
        "train": lambda: load_dataset(DataConfig(name="images", path=str(folder), size=SIDE)),
        "convert": lambda: READERS["image-folder"](folder, SIDE),
    }
    with pytest.raises(DataError, match=message):
        readers[read]()


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    """Pillow raises a ValueError of it, which named no file and ended conversion in a traceback."""
    grey8(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[11] = 5  # bytes that the header says it has, of 13
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(DataError, match="a.png: not a readable image .Truncated IHDR"):
        read_picture(tmp_path / "a.png", str(tmp_path / "a.png"))
