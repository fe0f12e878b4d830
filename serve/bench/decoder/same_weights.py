"""One decoder's GGUF file in other precisions, so that a peer reads the very weights that we do."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

PRECISIONS = ("F32", "F16", "Q8_0")


def write_in_precision(source: Path, precision: str, target: Path) -> None:
    """Write a GGUF file with its matrices in another precision; vectors and metadata stay.

    Raises ValueError for a precision that is not known, ImportError without the gguf package.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, allowed {', '.join(PRECISIONS)}")
    gguf: Any = import_module("gguf")
    quants: Any = import_module("gguf.quants")
    kind = gguf.GGMLQuantizationType[precision]
    reader = gguf.GGUFReader(str(source))
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(target), architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        inner = {"sub_type": field.types[-1]} if is_array else {}
        writer.add_key_value(name, field.contents(), field.types[0], **inner)
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        if values.ndim > 1:
            writer.add_tensor(tensor.name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
