"""The proto file is the public protocol's on the wire, and the stubs are what it generates."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

PROTO = Path("serve/proto/open_inference.proto")

# Two definitions of `inference.*` clash in one process: the others' runs in its own environment.
DESCRIBE = """
import json
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from tritonclient.grpc import model_config_pb2, service_pb2

files = []
for module in (service_pb2, model_config_pb2):
    file = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    files.append(file.SerializeToString().hex())
print(json.dumps(files))
"""


def messages(file, nested=None, prefix: str = ""):
    """Yield every message of a file descriptor with its dotted name, nested ones too."""
    for message in file.message_type if nested is None else nested:
        name = f"{prefix}{message.name}"
        yield name, message
        yield from messages(file, message.nested_type, f"{name}.")


def fields(message) -> dict[str, tuple]:
    return {f.name: (f.number, f.type, f.label, f.type_name) for f in message.field}


def test_every_message_and_method_is_the_public_protocols(wire_python: str):
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    from serve.proto import open_inference_pb2

    ours = FileDescriptorProto()
    open_inference_pb2.DESCRIPTOR.CopyToProto(ours)
    done = subprocess.run(
        [wire_python, "-c", DESCRIBE], capture_output=True, text=True, check=True, timeout=60
    )
    theirs = [FileDescriptorProto.FromString(bytes.fromhex(f)) for f in json.loads(done.stdout)]
    public = {name: fields(m) for file in theirs for name, m in messages(file)}
    for name, message in messages(ours):
        own = fields(message)
        assert own.items() <= public[name].items(), name
    (service,) = ours.service
    (public_service,) = theirs[0].service
    assert (ours.package, service.name) == (theirs[0].package, public_service.name)
    known = {m.name: (m.input_type, m.output_type) for m in public_service.method}
    assert {m.name: (m.input_type, m.output_type) for m in service.method}.items() <= known.items()
    (enum,) = ours.enum_type
    (public_enum,) = [e for e in theirs[1].enum_type if e.name == enum.name]
    assert [(v.name, v.number) for v in enum.value] == [
        (v.name, v.number) for v in public_enum.value
    ]


def test_generating_the_stubs_again_changes_nothing(wire_python: str, tmp_path: Path):
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [wire_python, "-m", "grpc_tools.protoc", "-I.", *outputs, str(PROTO)],
        check=True, timeout=60,
    )  # fmt: skip
    generated = sorted((tmp_path / PROTO.parent).iterdir())
    assert len(generated) == 3
    for path in generated:
        assert path.read_text() == (PROTO.parent / path.name).read_text(), (
            f"{path.name}: make proto"
        )
