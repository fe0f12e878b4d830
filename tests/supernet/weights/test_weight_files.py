"""Files that are not what they should be are refused with a reason, and never run."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from supernet.weights.weight_files import WeightsError, read_tensors


class Hostile:
    """Unpickling this would create a file."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_torch_files_of_both_kinds_are_read(
    tmp_path: Path, legacy: bool, wrapper: str | None
) -> None:
    tensors = {"module.a": torch.arange(3.0), "module.b": torch.ones(2, 2)}
    data = {wrapper: tensors, "epoch": 3} if wrapper else tensors
    torch.save(data, tmp_path / "w", _use_new_zipfile_serialization=not legacy)
    read = read_tensors(tmp_path / "w")
    assert read.keys() == {"a", "b"}
    assert torch.equal(read["a"], torch.arange(3.0))


def test_safetensors_and_numpy_archives_are_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    np.savez_compressed(tmp_path / "w.npz", a=np.ones(3, np.float32))
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "w.npz"):
        assert torch.equal(read_tensors(source)["a"], torch.ones(3))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_is_refused(tmp_path: Path, legacy: bool) -> None:
    victim = tmp_path / "victim"
    data = {"a": torch.ones(1), "b": Hostile(victim)}
    torch.save(data, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Hostile(victim)))
    for name in ("w.pth", "plain.pkl"):
        with pytest.raises(WeightsError, match=r"holds more than tensors|not a whole torch file"):
            read_tensors(tmp_path / name)
    objects = np.array([Hostile(victim)], dtype=object)
    np.savez(tmp_path / "w.npz", a=objects)
    with pytest.raises(WeightsError, match="not plain arrays"):
        read_tensors(tmp_path / "w.npz")
    assert not victim.exists()


@pytest.mark.parametrize("entry", ["a.npy", "archive/data.pkl"])
def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, entry: str) -> None:
    bomb = tmp_path / "w.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(entry, b"\0" * 50_000_000)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(WeightsError, match="would unpack to 50,000,"):
        read_tensors(bomb)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1000)}, tmp_path / "w.safetensors")
    torch.save({"a": torch.ones(1000)}, tmp_path / "w.pth")
    torch.save({"a": torch.ones(9)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "w.npz", a=np.ones(1000))
    for path in list(tmp_path.iterdir()):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(WeightsError, match=f"{path.name}: not"):
            read_tensors(path)


def test_other_content_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        read_tensors(tmp_path / "absent")
    with pytest.raises(WeightsError, match=r"holds no model.safetensors"):
        read_tensors(tmp_path)
    (tmp_path / "text").write_text("weights")
    with pytest.raises(WeightsError, match="allowed are .safetensors, torch.save files and .npz"):
        read_tensors(tmp_path / "text")
    buffer = io.BytesIO()
    torch.save({"a": 1, "b": torch.ones(1)}, buffer)
    (tmp_path / "mixed").write_bytes(buffer.getvalue())
    with pytest.raises(WeightsError, match="expected tensors by name"):
        read_tensors(tmp_path / "mixed")


def test_a_shard_index_may_not_leave_its_folder(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with pytest.raises(WeightsError, match="outside the folder"):
        read_tensors(tmp_path)
