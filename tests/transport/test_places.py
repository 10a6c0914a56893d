"""Parameters of tensors say where they are, in Triton's words where they are wrong."""

from typing import Any

import pytest

from protos.grpc_service_pb2 import ModelInferRequest
from server.core.errors import InvalidRequest, NotFound, PodiumError
from server.core.requests import Place
from server.transport.places import NoMemory, place_of, target_of
from tests.transport.regions import Memory, Region

REGION = Region(bytes(100), "r")
MEMORY = Memory(REGION)


def output(**parameters: Any) -> ModelInferRequest.InferRequestedOutputTensor:
    made = ModelInferRequest.InferRequestedOutputTensor(name="y")
    for name, value in parameters.items():
        parameter = made.parameters["classification" if name == "classification" else f"shared_memory_{name}"]
        match value:
            case str():
                parameter.string_param = value
            case bool():
                parameter.bool_param = value
            case _:
                parameter.int64_param = value
    return made


@pytest.mark.parametrize(
    ("made", "offset", "byte_size"),
    [
        (output(region="r", byte_size=100), 0, 100),
        (output(region="r", byte_size=1, offset=99), 99, 1),
        (output(region="r", byte_size=0, offset=0), 0, 0),
    ],
)
def test_a_place_within_its_region(made: Any, offset: int, byte_size: int) -> None:
    assert target_of(made, MEMORY) == place_of(made, MEMORY) == Place(REGION, offset, byte_size)


def test_no_place() -> None:
    assert target_of(output(), MEMORY) is None
    assert target_of(output(classification=2**62), MEMORY) == 2**62


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (
            output(region="r"),
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'y'",
        ),
        (
            output(offset=1),
            "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'y'",
        ),
        (
            output(byte_size=1),
            "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor 'y'",
        ),
        (
            output(region=4, byte_size=1),
            "invalid value type for 'shared_memory_region' parameter for tensor 'y', expected string_param.",
        ),
        (
            output(region="r", byte_size="1"),
            "invalid value type for 'shared_memory_byte_size' parameter for tensor 'y', expected int64_param.",
        ),
        (
            output(region="r", byte_size=1, offset=True),
            "invalid value type for 'shared_memory_offset' parameter for tensor 'y', expected int64_param.",
        ),
        (output(region="r", byte_size=1, offset=100), "Invalid offset for shared memory region: 'r'"),
        (output(region="r", byte_size=1, offset=-1), "Invalid offset for shared memory region: 'r'"),
        (output(region="r", byte_size=0, offset=2**63 - 1), "Invalid offset for shared memory region: 'r'"),
        (output(region="r", byte_size=100, offset=1), "Invalid offset + byte size for shared memory region: 'r'"),
        (output(region="r", byte_size=2**63 - 1, offset=99), "Invalid offset + byte size for shared memory region: 'r'"),
        (output(region="r", byte_size=-1), "Invalid offset + byte size for shared memory region: 'r'"),
        (output(region="r", classification=1), "output can't set both 'shared_memory_region' and 'classification'"),
        (output(classification="1"), "invalid value type for 'classification' parameter, expected int64_param"),
        (output(classification=0), "invalid value for 'classification' parameter, expected >= 0"),
        (output(classification=-(2**63)), "invalid value for 'classification' parameter, expected >= 0"),
    ],
)
def test_parameters_that_are_wrong(made: Any, text: str) -> None:
    with pytest.raises(PodiumError) as caught:
        target_of(made, MEMORY)
    assert (type(caught.value), str(caught.value)) == (InvalidRequest, text)


def test_where_nothing_is_shared() -> None:
    with pytest.raises(NotFound, match=r"^Unable to find shared memory region: 'r'$"):
        target_of(output(region="r", byte_size=1), NoMemory())
