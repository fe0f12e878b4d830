"""Reading tensors from files that others wrote, without ever running what they hold.

Safetensors, NumPy archives, and PyTorch files of both kinds (zip archive, older plain pickle).
Pickles are read by torch's `weights_only` unpickler, which builds tensors and plain containers
and refuses everything else. Archives are looked at before they are unpacked: torch stores tensors
uncompressed, so an archive that grows is no weight file.
"""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# NumPy may compress; trained weights shrink by about a tenth, so a factor of 20 is no weight file.
_MAX_GROWTH = 20
_WRAPPERS = ("state_dict", "model", "model_state_dict")


class WeightsError(ValueError):
    """A file of weights that cannot be read, or does not hold what it should."""


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, or of `model.safetensors` in a folder, by name.

    A `state_dict` inside a dictionary and the `module.` prefix of data parallel training are
    unwrapped. Raises WeightsError: no such file, a format that is not known, a truncated or
    compressed archive, a pickle that holds more than tensors.
    """
    source = Path(path)
    if source.is_dir():
        return _read_folder(source)
    if not source.is_file():
        raise WeightsError(f"{source}: no such file")
    with source.open("rb") as file:
        start = file.read(9)
    if start[:4] == _ZIP:
        tensors = _read_archive(source)
    elif start[:1] == _PICKLE:
        tensors = _read_torch(source)
    elif len(start) == 9 and start[8:] == b"{":
        tensors = _read_safetensors(source)
    else:
        raise WeightsError(
            f"{source}: not a weight file; allowed are .safetensors, torch.save files and .npz"
        )
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): t for name, t in tensors.items()}
    return tensors


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return `config.json` of a Hugging Face-format folder. Raises WeightsError."""
    path = Path(folder) / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file; is this a Hugging Face-format folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _read_folder(folder: Path) -> dict[str, torch.Tensor]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return read_tensors(single)
    if not index.is_file():
        raise WeightsError(f"{folder}: holds no model.safetensors")
    files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    tensors: dict[str, torch.Tensor] = {}
    for name in files:
        if Path(name).name != name:
            raise WeightsError(f"{index}: names {name!r}, which is outside the folder")
        tensors |= read_tensors(folder / name)
    return tensors


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, struct.error) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error})") from None


def _read_archive(path: Path) -> dict[str, torch.Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{path}: not a whole archive ({error})") from None
    unpacked, packed = sum(e.file_size for e in entries), path.stat().st_size
    if unpacked > _MAX_GROWTH * packed:
        raise WeightsError(
            f"{path}: {packed:,} bytes would unpack to {unpacked:,}; weights do not compress "
            "like that, so it is not read"
        )
    if all(entry.filename.endswith(".npy") for entry in entries):
        return _read_numpy(path)
    return _read_torch(path)


def _read_numpy(path: Path) -> dict[str, torch.Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: not plain arrays ({error})") from None


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of newer pickle protocols; they load or they raise
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n", 1)[0]
        raise WeightsError(
            f"{path}: holds more than tensors, and running it is refused ({reason})"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise WeightsError(f"{path}: not a whole torch file ({reason})") from None
    return _only_tensors(data, path)


def _only_tensors(data: Any, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(data, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(data.get(wrapper), Mapping):
                return _only_tensors(data[wrapper], path)
        if data and all(isinstance(value, torch.Tensor) for value in data.values()):
            return {str(name): tensor for name, tensor in data.items()}
    raise WeightsError(
        f"{path}: expected tensors by name, alone or under {', '.join(_WRAPPERS)}; "
        f"got {type(data).__name__}"
    )
