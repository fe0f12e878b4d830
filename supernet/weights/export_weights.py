"""`export_subnet`: one subnet as a file that others load.

| format | what | read by |
|---|---|---|
| state_dict | tensors in the naming of an origin; `.safetensors`, else torch.save | timm, .. |
| torch_export | a program with a free batch size | torch.export.load |
| torchscript | a trace at one input size | torch.jit.load, C++ |
| onnx | a graph with a free batch size, run once by onnxruntime and compared | any ONNX runtime |

Files are written beside their place and moved when whole and checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from supernet.arch import Arch
from supernet.definition import SupernetDefinition
from supernet.subnets.extract import extract
from supernet.tensor_file import save_tensors
from supernet.weights.naming import State, find_naming
from supernet.weights.ofa_files import to_elastic

_MAX_BATCH = 1024
_TOLERANCE = 1e-3


class ExportError(ValueError):
    """A subnet that cannot be written as asked, or an exported file that answers differently."""


def origin_state(
    state: Mapping[str, torch.Tensor],
    definition: SupernetDefinition,
    arch: Arch | None,
    origin: str,
    norm_statistics: Mapping[str, torch.Tensor] | None = None,
) -> State:
    """Return a subnet's state_dict in its origin's naming; `supernet` is our own.

    Without `arch` it is the whole supernet, which only OFA's files and our own can hold.
    Raises ValueError for an origin that does not name this family or cannot hold the whole.
    """
    if arch is None:
        if origin == "supernet":
            return dict(state)
        if origin != "ofa":
            raise ExportError(f"{origin} cannot hold a whole supernet: choose one subnet")
        return to_elastic(state, definition, find_naming("ofa", definition.family_name))
    subnet = extract(state, definition, arch, norm_statistics).state_dict()
    if origin == "supernet":
        return subnet
    return find_naming(origin, definition.family_name).to_origin(subnet, definition)


def write_state(tensors: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Write tensors as safetensors or, with another ending, by torch.save."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if Path(path).suffix == ".safetensors":
        write_whole(path, lambda partial: save_tensors(contiguous, partial))
    else:
        write_whole(path, lambda partial: torch.save({"state_dict": contiguous}, partial))


def export_subnet(subnet: nn.Module, example: torch.Tensor, path: str | Path, format: str) -> float:
    """Write an extracted subnet as a program and return its largest deviation on `example`.

    `example` is one batch of inputs; its size but for the batch is fixed. Raises ExportError for
    an unknown format, absent packages, or a program that computes something else.
    """
    writers: dict[str, Callable[[nn.Module, torch.Tensor, Path], torch.Tensor]] = {
        "torch_export": _write_program,
        "torchscript": _write_torchscript,
        "onnx": _write_onnx,
    }
    if format not in writers:
        raise ExportError(f"format is {format!r}, allowed state_dict, {', '.join(writers)}")
    subnet = subnet.eval()
    deviations: list[float] = []

    def write(partial: Path) -> None:
        with torch.no_grad():
            expected = subnet(example)
            answered = writers[format](subnet, example, partial)
        deviation = (answered - expected).abs().max().item()
        deviations.append(deviation)
        if not deviation <= _TOLERANCE * max(1.0, expected.abs().max().item()):
            raise ExportError(f"{path}: the exported program deviates by {deviation:.3g}")

    write_whole(path, write)
    return deviations[0]


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a file beside `path`, and move it there when it is complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        write(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _free_batch() -> tuple[dict[int, torch.export.Dim], ...]:
    return ({0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)},)


def _write_program(subnet: nn.Module, example: torch.Tensor, path: Path) -> torch.Tensor:
    program = torch.export.export(subnet, (example,), dynamic_shapes=_free_batch())
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file:
        return torch.export.load(file).module()(example)


def _write_torchscript(subnet: nn.Module, example: torch.Tensor, path: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch calls TorchScript deprecated; the trace is meant for one input size.
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(subnet, example, check_trace=False)
        traced.save(str(path))
        return torch.jit.load(str(path))(example)


def _write_onnx(subnet: nn.Module, example: torch.Tensor, path: Path) -> torch.Tensor:
    try:
        onnxruntime = import_module("onnxruntime")
        import_module("onnxscript")  # which torch.onnx uses
    except ImportError as error:
        raise ExportError(
            f"ONNX export needs {error.name}: pip install 'supernet-serving[onnx]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own dependencies
        torch.onnx.export(
            subnet,
            (example,),
            str(path),
            dynamo=True,
            dynamic_shapes=_free_batch(),
            input_names=["input"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input": example.numpy()})[0])
