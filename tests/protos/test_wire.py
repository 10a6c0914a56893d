"""Our messages are, number by number, those of NVIDIA's client library, and live beside it in one process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2 as their_config
from tritonclient.grpc import service_pb2 as their_service

from protos import grpc_service_pb2, model_config_pb2
from protos.pool import POOL

ROOT = Path(__file__).parents[2]
ENTRY = "ModelMetadataResponse.PropertiesEntry"
ADDED = {("ModelMetadataResponse", "properties", 6), (ENTRY, True), (ENTRY, "key", 1), (ENTRY, "value", 2)}
PAIRS = [(their_config.DESCRIPTOR, model_config_pb2.DESCRIPTOR), (their_service.DESCRIPTOR, grpc_service_pb2.DESCRIPTOR)]


def short(full_name: str) -> str:
    return full_name.removeprefix("inference.")


def field_facts(message: Descriptor, field: FieldDescriptor) -> tuple[Any, ...]:
    oneof = field.containing_oneof.name if field.containing_oneof else None
    message_type = field.message_type.full_name if field.message_type else None
    enum_type = field.enum_type.full_name if field.enum_type else None
    kind = (field.type, field.is_repeated, field.has_presence, field.is_packed, field.json_name)
    return (short(message.full_name), field.name, field.number, kind, oneof, message_type, enum_type)


def enum_facts(enum: EnumDescriptor) -> tuple[Any, ...]:
    return ("enum", short(enum.full_name), tuple((value.name, value.number) for value in enum.values))


def message_facts(message: Descriptor) -> Iterator[tuple[Any, ...]]:
    name = short(message.full_name)
    yield (name, message.GetOptions().map_entry)
    yield from (field_facts(message, field) for field in message.fields)
    yield from (enum_facts(enum) for enum in message.enum_types)
    for nested in message.nested_types:
        yield from message_facts(nested)


def file_facts(file: Any) -> set[tuple[Any, ...]]:
    """Everything of a file that shows on the wire or in a client's code."""
    facts: set[tuple[Any, ...]] = {("package", file.package)}
    for message in file.message_types_by_name.values():
        facts.update(message_facts(message))
    facts.update(enum_facts(enum) for enum in file.enum_types_by_name.values())
    for service in file.services_by_name.values():
        for rpc in service.methods:
            types = (rpc.input_type.full_name, rpc.output_type.full_name)
            facts.add(("rpc", rpc.full_name, *types, rpc.client_streaming, rpc.server_streaming))
    return facts


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_everything_of_theirs_is_in_ours_and_properties_is_the_only_addition(theirs: Any, ours: Any) -> None:
    expected, got = file_facts(theirs), file_facts(ours)
    assert len(expected) > 100
    assert expected - got == set()
    added = {fact[:3] for fact in got - expected}
    assert added == (ADDED if ours is grpc_service_pb2.DESCRIPTOR else set())


def test_the_service_has_twenty_calls_and_one_streams() -> None:
    calls = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert len(calls) == 20
    assert [call.name for call in calls if call.client_streaming or call.server_streaming] == ["ModelStreamInfer"]


def test_our_descriptors_are_in_our_pool_only() -> None:
    assert POOL.FindMessageTypeByName("inference.ModelConfig") is model_config_pb2.ModelConfig.DESCRIPTOR
    default = descriptor_pool.Default()
    with pytest.raises(KeyError):
        default.FindFileByName("protos/grpc_service.proto")
    assert grpc_service_pb2.ModelInferRequest.DESCRIPTOR.file.pool is POOL


OURS = "from protos import grpc_service_pb2 as ours, grpc_service_pb2_grpc, model_config_pb2"
THEIRS = "import tritonclient.grpc; from tritonclient.grpc import service_pb2 as theirs"
EXCHANGE = """
for sender, receiver in ((ours, theirs), (theirs, ours)):
    sent = sender.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"ab", b""])
    sent.inputs.add(name="x", datatype="FP32", shape=[-1, 2**40]).contents.fp32_contents.extend([1.5, -2])
    sent.parameters["priority"].uint64_param = 2**63
    got = receiver.ModelInferRequest.FromString(sent.SerializeToString(deterministic=True))
    assert got.SerializeToString(deterministic=True) == sent.SerializeToString(deterministic=True)
    assert got.inputs[0].shape == [-1, 2**40] and got.parameters["priority"].uint64_param == 2**63
    config = sender.ModelConfigResponse()
    config.config.dynamic_batching.priority_queue_policy[3].max_queue_size = 9
    got = receiver.ModelConfigResponse.FromString(config.SerializeToString())
    assert got.config.dynamic_batching.priority_queue_policy[3].max_queue_size == 9
assert type(sent) is not type(got)
print("exchanged")
"""


@pytest.mark.parametrize("imports", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours first", "theirs first"])
def test_both_stubs_live_in_one_process_and_understand_each_other(imports: tuple[str, str]) -> None:
    program = "\n".join([*imports, EXCHANGE])
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("exchanged\n", 0), done.stderr
