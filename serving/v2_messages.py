"""The gRPC messages of the Open Inference Protocol, version 2, built from the table below.

Names and numbers are the protocol's. The classes live in a pool of their own: another copy of the protocol in the same
process (a stock client's) does not clash with them, and nothing has to be generated.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

SERVICE = "inference.GRPCInferenceService"
_PACKAGE = "inference"
_PARAMETERS = "InferParameter by name"
_MESSAGES: dict[str, tuple[tuple[int, str, str], ...]] = {
    "InferParameter": (
        (1, "bool_param", "bool"),
        (2, "int64_param", "int64"),
        (3, "string_param", "string"),
        (4, "double_param", "double"),
        (5, "uint64_param", "uint64"),
    ),
    "InferTensorContents": (
        (1, "bool_contents", "bool*"),
        (2, "int_contents", "int32*"),
        (3, "int64_contents", "int64*"),
        (4, "uint_contents", "uint32*"),
        (5, "uint64_contents", "uint64*"),
        (6, "fp32_contents", "float*"),
        (7, "fp64_contents", "double*"),
        (8, "bytes_contents", "bytes*"),
    ),
    "ServerLiveRequest": (),
    "ServerLiveResponse": ((1, "live", "bool"),),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ((1, "ready", "bool"),),
    "ModelReadyRequest": ((1, "name", "string"), (2, "version", "string")),
    "ModelReadyResponse": ((1, "ready", "bool"),),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": ((1, "name", "string"), (2, "version", "string"), (3, "extensions", "string*")),
    "ModelMetadataRequest": ((1, "name", "string"), (2, "version", "string")),
    "ModelMetadataResponse": (
        (1, "name", "string"),
        (2, "versions", "string*"),
        (3, "platform", "string"),
        (4, "inputs", "ModelMetadataResponse.TensorMetadata*"),
        (5, "outputs", "ModelMetadataResponse.TensorMetadata*"),
    ),
    "ModelMetadataResponse.TensorMetadata": ((1, "name", "string"), (2, "datatype", "string"), (3, "shape", "int64*")),
    "ModelInferRequest": (
        (1, "model_name", "string"),
        (2, "model_version", "string"),
        (3, "id", "string"),
        (4, "parameters", _PARAMETERS),
        (5, "inputs", "ModelInferRequest.InferInputTensor*"),
        (6, "outputs", "ModelInferRequest.InferRequestedOutputTensor*"),
        (7, "raw_input_contents", "bytes*"),
    ),
    "ModelInferRequest.InferInputTensor": (
        (1, "name", "string"),
        (2, "datatype", "string"),
        (3, "shape", "int64*"),
        (4, "parameters", _PARAMETERS),
        (5, "contents", "InferTensorContents"),
    ),
    "ModelInferRequest.InferRequestedOutputTensor": ((1, "name", "string"), (2, "parameters", _PARAMETERS)),
    "ModelInferResponse": (
        (1, "model_name", "string"),
        (2, "model_version", "string"),
        (3, "id", "string"),
        (4, "parameters", _PARAMETERS),
        (5, "outputs", "ModelInferResponse.InferOutputTensor*"),
        (6, "raw_output_contents", "bytes*"),
    ),
    "ModelInferResponse.InferOutputTensor": (
        (1, "name", "string"),
        (2, "datatype", "string"),
        (3, "shape", "int64*"),
        (4, "parameters", _PARAMETERS),
        (5, "contents", "InferTensorContents"),
    ),
}
"""Message to its fields: number, name, type; `*` repeats, and all of an InferParameter are alternatives."""


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="open_inference_v2.proto", package=_PACKAGE, syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for name, fields in _MESSAGES.items():
        outer, _, inner = name.rpartition(".")
        message = made[name] = (made[outer].nested_type if outer else file.message_type).add(name=inner)
        if name == "InferParameter":
            message.oneof_decl.add(name="parameter_choice")
        for number, field, kind in fields:
            _add(message, number, field, kind, f".{_PACKAGE}.{name}")
            if name == "InferParameter":
                message.field[-1].oneof_index = 0
    return file


def _add(message: DescriptorProto, number: int, name: str, kind: str, path: str) -> None:
    field = message.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kind.endswith("*") or kind == _PARAMETERS:
        field.label = FieldDescriptorProto.LABEL_REPEATED
    kind = kind.rstrip("*")
    if kind == _PARAMETERS:
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add(entry, 1, "key", "string", path)
        _add(entry, 2, "value", "InferParameter", path)
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f"{path}.ParametersEntry"
    elif kind in _MESSAGES:
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")


_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(_file().SerializeToString())


@cache
def message(name: str) -> Any:
    """A message's class by its name within the protocol."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
