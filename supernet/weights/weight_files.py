"""Reading tensors from files that others wrote, without ever running what they hold.

Safetensors, NumPy archives, and PyTorch files of both kinds (zip archive, older plain pickle).
Pickles are read by torch's `weights_only` unpickler, which builds tensors and plain containers
and refuses everything else. Archives are looked at before they are unpacked: torch stores tensors
uncompressed, so an archive that grows is no weight file.
"""

from __future__ import annotations

import json
import pickle
import re
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

from supernet.weights.wrapped_names import without_wrappers

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# NumPy may compress; trained weights shrink by about a tenth, so a factor of 20 is no weight file.
_MAX_GROWTH = 20
# Where trainers put the weights beside their own state; the first that is there is taken.
_WRAPPERS = (
    "state_dict", "model", "model_state_dict", "module", "net", "network", "weights", "params",
    "state_dict_ema", "model_ema", "ema",
)  # fmt: skip
_STATE_OF_TRAINERS = re.compile("optim|sched|scaler|config|args|param_groups|loops|callbacks", re.I)
_MAX_WRAPPED = 8


class WeightsError(ValueError):
    """A file of weights that cannot be read, or does not hold what it should."""


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, or of `model.safetensors` in a folder, by name.

    A `state_dict` inside dictionaries is unwrapped, and what wrappers of modules put into names
    (`wrapped_names.py`). Raises WeightsError: no such file, a format that is not known, a truncated
    or compressed archive, a pickle that holds more than tensors, a malformed index.
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
    return without_wrappers(tensors)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return `config.json` of a Hugging Face-format folder. Raises WeightsError."""
    return read_json(Path(folder) / "config.json", "is this a Hugging Face-format folder?")


def read_json(path: Path, where_missing: str) -> dict[str, Any]:
    """Return a JSON object; `where_missing` says more of a file that is absent."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"{path}: no such file; {where_missing}") from None
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
    weight_map = read_json(index, "").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(
            f"{index}: expected weight_map, an object that says for each tensor in which file it "
            f"is; got {type(weight_map).__name__ if weight_map is not None else 'none'}"
        )
    named = list(weight_map.values())
    if not all(isinstance(name, str) for name in named):
        raise WeightsError(f"{index}: weight_map must name a file, as text, for each tensor")
    files = sorted(set(named))
    tensors: dict[str, torch.Tensor] = {}
    for name in files:
        if Path(name).name != name:
            raise WeightsError(f"{index}: names {name!r}, which is outside the folder")
        tensors |= read_tensors(folder / name)
    absent = sorted(without_wrappers(weight_map).keys() - tensors.keys())
    if absent:
        raise WeightsError(f"{index}: names {', '.join(absent[:20])}, which no file holds")
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


def _only_tensors(data: Any, path: Path, depth: int = 0) -> dict[str, torch.Tensor]:
    if isinstance(data, Mapping) and depth < _MAX_WRAPPED:
        if data and all(isinstance(value, torch.Tensor) for value in data.values()):
            return {str(name): tensor for name, tensor in data.items()}
        for wrapper in _WRAPPERS:
            if isinstance(data.get(wrapper), Mapping):
                return _only_tensors(data[wrapper], path, depth + 1)
        # Under a name of somebody's own: the only dictionary there that is no trainer's state.
        inner = [
            value
            for key, value in data.items()
            if isinstance(value, Mapping) and not _STATE_OF_TRAINERS.search(str(key))
        ]
        if len(inner) == 1:
            return _only_tensors(inner[0], path, depth + 1)
    held = ", ".join(map(str, list(data)[:10])) if isinstance(data, Mapping) else ""
    raise WeightsError(
        f"{path}: expected tensors by name, alone or under {', '.join(_WRAPPERS)}; "
        f"got {type(data).__name__}{f' of {held}' if held else ''}"
    )
