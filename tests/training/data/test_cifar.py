"""CIFAR in its published layouts: found, or fetched from a stand-in for the network."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from training.config import DataConfig
from training.data import cifar
from training.data.array_folder import ArraySplit, DataError, write_array_folder
from training.data.cifar import CIFAR10_CLASSES, LAYOUTS, load_cifar
from training.data.data import load_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(12) % 10
PARTS = {f"data_batch_{i + 1}": slice(2 * i, 2 * i + 2) for i in range(5)} | {
    "test_batch": slice(10, 12)
}


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in PARTS.items():
        labels = LABELS[rows, None].astype(np.uint8)
        records = np.hstack([labels, IMAGES[rows].reshape(-1, 3072)])
        (folder / f"{name}.bin").write_bytes(records.tobytes())


def write_pickled(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, rows in PARTS.items():
        batch = {"data": IMAGES[rows].reshape(-1, 3072), "labels": LABELS[rows].tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"label_names": list(CIFAR10_CLASSES)}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def write_arrays(folder: Path) -> None:
    train, test = ArraySplit(IMAGES[:10], LABELS[:10]), ArraySplit(IMAGES[10:], LABELS[10:])
    write_array_folder(folder, train, test, CIFAR10_CLASSES)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served where the CIFAR-10 archive is fetched from."""
    served = tmp_path / "served"
    served.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
        layout = LAYOUTS["cifar10"]._replace(url=url)
        monkeypatch.setitem(cifar.LAYOUTS, "cifar10", layout)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("write", "below"),
    [
        (write_binary, "cifar-10-batches-bin"),
        (write_binary, ""),
        (write_pickled, "cifar-10-batches-py"),
        (write_arrays, "."),
    ],
)
def test_every_layout_is_found_and_gives_the_same_images(write, below: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / below)
    folder = load_cifar("cifar10", root)
    np.testing.assert_array_equal(folder.train.images, IMAGES[:10])
    np.testing.assert_array_equal(folder.train.labels, LABELS[:10])
    np.testing.assert_array_equal(folder.test.images, IMAGES[10:])
    assert folder.classes == CIFAR10_CLASSES


def test_a_config_names_it(tmp_path: Path) -> None:
    write_binary(tmp_path / "cifar-10-batches-bin")
    data = load_dataset(DataConfig(name="cifar10", path=str(tmp_path), validation=0.2))
    assert (data.name, len(data.train), len(data.validation), len(data.test)) == (
        "cifar10", 8, 2, 2,
    )  # fmt: skip


def test_what_is_missing_is_fetched_once(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_binary(tmp_path / "cifar-10-batches-bin")
    archive = network / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    md5 = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(cifar.LAYOUTS, "cifar10", LAYOUTS["cifar10"]._replace(md5=md5))
    root = tmp_path / "root"
    np.testing.assert_array_equal(load_cifar("cifar10", root).train.images, IMAGES[:10])
    archive.unlink()
    np.testing.assert_array_equal(load_cifar("cifar10", root).train.images, IMAGES[:10])


def test_an_archive_with_another_checksum_is_refused(network: Path, tmp_path: Path) -> None:
    (network / "cifar-10-binary.tar.gz").write_bytes(b"something else")
    with pytest.raises(DataError, match="not found or corrupted"):
        load_cifar("cifar10", tmp_path / "root")


def test_without_a_network_it_says_where_to_put_the_files(network: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither cifar-10-batches-bin.* by hand"):
        load_cifar("cifar10", tmp_path / "root")


def test_a_pickle_that_would_call_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "called",))

    write_pickled(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=r"data_batch_3: not a CIFAR batch \(it asks for"):
        load_cifar("cifar10", tmp_path)
    assert not (tmp_path / "called").exists()


def test_labels_of_other_classes_and_files_without_names_are_refused(tmp_path: Path) -> None:
    """A label of 200 had been found by the loss, in a traceback."""
    write_binary(tmp_path / "a" / "cifar-10-batches-bin")
    path = tmp_path / "a" / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(bytes([200]) + path.read_bytes()[1:])
    with pytest.raises(DataError, match="cifar10, train: labels reach from 0 to 200, allowed 0 to"):
        load_cifar("cifar10", tmp_path / "a")
    write_pickled(tmp_path / "b" / "cifar-10-batches-py")
    meta = tmp_path / "b" / "cifar-10-batches-py" / "batches.meta"
    meta.write_bytes(pickle.dumps({"names": []}))
    with pytest.raises(DataError, match="batches.meta: expected label_names, a list of class"):
        load_cifar("cifar10", tmp_path / "b")
