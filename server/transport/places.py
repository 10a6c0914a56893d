"""Where a tensor of a message is, or shall go, other than in a message. Pure over the memory it is handed.

Floor 6, off the straight path: only tensors with parameters come here. Texts are NVIDIA Triton's
(triton-inference-server/server, src/grpc/grpc_utils.h and src/shared_memory_manager.cc, 2026-08).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from protos.grpc_service_pb2 import ModelInferRequest
from server.core.errors import InvalidRequest, NotFound, SharedMemoryFailed
from server.core.requests import Place, Region, Target

Tensor = ModelInferRequest.InferInputTensor | ModelInferRequest.InferRequestedOutputTensor


class Memory(Protocol):
    """The regions that callers share."""

    @property
    def max_read_bytes(self) -> int:
        """How much the inputs of one request may have in them."""
        ...

    def find(self, name: str) -> Region:
        """A region by its name. Raises: NotFound."""
        ...


class NoMemory:
    """Where nothing is shared."""

    max_read_bytes = 0

    def find(self, name: str) -> Region:
        """Raises: NotFound."""
        raise NotFound(f"Unable to find shared memory region: '{name}'")


def place_of(tensor: Tensor, memory: Memory) -> Place | None:
    """The place a tensor names, or None where it names none. Other parameters are hints.

    Raises: InvalidRequest for parameters of the wrong form or beyond the region, NotFound.
    """
    region = _region(tensor)
    offset = _integer("shared_memory_offset", tensor, region)
    byte_size = _integer("shared_memory_byte_size", tensor, region)
    if region is None:
        return None
    if byte_size is None:
        raise InvalidRequest(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor"
            f" '{tensor.name}'"
        )
    return _within(memory.find(region), offset or 0, byte_size)


def target_of(output: ModelInferRequest.InferRequestedOutputTensor, memory: Memory) -> Target | None:
    """What is to be done with a requested output, or None where it is simply sent.

    Raises: InvalidRequest for parameters of the wrong form or for both of them at once, NotFound.
    """
    classes = _classes(output)
    if classes is not None and "shared_memory_region" in output.parameters:
        raise InvalidRequest("output can't set both 'shared_memory_region' and 'classification'")
    return place_of(output, memory) or classes


def fitting(name: str, place: Place, byte_size: int) -> Place:
    """The part of a place that an output of so many bytes takes. Raises: SharedMemoryFailed where it is too small."""
    if byte_size > place.byte_size:
        raise SharedMemoryFailed(
            f"shared memory size specified with the request for output '{name}' ({place.byte_size} bytes) should be at least"
            f" {byte_size} bytes to hold the results"
        )
    return Place(place.region, place.offset, byte_size)


def write_all(parts: Sequence[tuple[Place, bytes]]) -> None:
    """Write each output to its place; none of them where a place is gone, or the outputs overlap.

    Raises: InvalidRequest, SharedMemoryFailed.
    """
    spans = sorted(
        (*place.region.writable(place.offset, place.byte_size), place.region.name) for place, _ in parts if place.byte_size
    )
    for (file, _, last, name), (other_file, first, _, other_name) in pairwise(spans):
        if file == other_file and first < last:
            raise InvalidRequest(f"outputs overlap in shared memory: regions '{name}' and '{other_name}'")
    for place, data in parts:
        place.region.write(place.offset, data)


def _within(region: Region, offset: int, byte_size: int) -> Place:
    if not 0 <= offset < region.byte_size:
        raise InvalidRequest(f"Invalid offset for shared memory region: '{region.name}'")
    if byte_size < 0 or offset + byte_size > region.byte_size:
        raise InvalidRequest(f"Invalid offset + byte size for shared memory region: '{region.name}'")
    return Place(region, offset, byte_size)


def _region(tensor: Tensor) -> str | None:
    if "shared_memory_region" not in tensor.parameters:
        return None
    parameter = tensor.parameters["shared_memory_region"]
    if parameter.WhichOneof("parameter_choice") != "string_param":
        raise _wrong_type("shared_memory_region", tensor, "string_param")
    return parameter.string_param


def _integer(name: str, tensor: Tensor, region: str | None) -> int | None:
    if name not in tensor.parameters:
        return None
    if region is None:
        raise InvalidRequest(
            f"'{name}' can not be specified without 'shared_memory_region' parameter for tensor '{tensor.name}'"
        )
    parameter = tensor.parameters[name]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise _wrong_type(name, tensor, "int64_param")
    return parameter.int64_param


def _wrong_type(name: str, tensor: Tensor, expected: str) -> InvalidRequest:
    return InvalidRequest(f"invalid value type for '{name}' parameter for tensor '{tensor.name}', expected {expected}.")


def _classes(output: ModelInferRequest.InferRequestedOutputTensor) -> int | None:
    if "classification" not in output.parameters:
        return None
    parameter = output.parameters["classification"]
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidRequest("invalid value type for 'classification' parameter, expected int64_param")
    if parameter.int64_param <= 0:
        # the text is Triton's; it refuses 0 as well
        raise InvalidRequest("invalid value for 'classification' parameter, expected >= 0")
    return parameter.int64_param
