"""What clients are told about models, read back with their own client's messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2, service_pb2

from server.core.settings import BatchingSettings, ModelSettings, QueueSettings, TensorSettings, VersionPolicy
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, TensorSpec
from server.core.versions import VersionKey
from server.transport import describe
from server.transport.describe import DATA_TYPES

SIGNATURE = Signature(
    "m", (TensorSpec("x", "FP32", (-1, 4)), TensorSpec("s", "BYTES", (), optional=True)), (TensorSpec("y", "BF16", (2,)),), 8
)
FLAT = Signature("flat", (TensorSpec("x", "INT64", (3,)),), (), 0)


@dataclass(frozen=True)
class Stats:
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    durations: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    batches: Sequence[tuple[int, Mapping[str, tuple[int, int]]]] = ()
    memory_bytes: int = 0


def theirs(kind: type[Message], message: Message) -> Any:
    return kind.FromString(message.SerializeToString())


def as_dict(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def test_data_types_are_theirs() -> None:
    assert set(DATA_TYPES) == set(NUMPY_DTYPES)
    for name, number in DATA_TYPES.items():
        assert model_config_pb2.DataType.Name(number) == ("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}")


def test_metadata_shows_the_batch_dimension_where_the_model_batches() -> None:
    got = theirs(service_pb2.ModelMetadataResponse, describe.metadata(SIGNATURE, (2, 11), "onnxruntime_onnx"))
    assert as_dict(got) == {
        "name": "m",
        "versions": ["2", "11"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": ["-1", "-1", "4"]},
            {"name": "s", "datatype": "BYTES", "shape": ["-1"]},
        ],
        "outputs": [{"name": "y", "datatype": "BF16", "shape": ["-1", "2"]}],
    }
    assert list(describe.metadata(FLAT, (1,), "fake").inputs[0].shape) == [3]
    assert describe.metadata(FLAT, (1,), "fake", {"owner": "ops"}).properties == {"owner": "ops"}


def test_config_of_a_batching_model() -> None:
    settings = ModelSettings(
        batching=BatchingSettings(max_queue_delay_us=250),
        queue=QueueSettings(max_requests=9, priority_levels=3, default_priority=2, default_timeout_us=700),
        versions=VersionPolicy(policy="latest", count=2),
        instances=3,
        outputs=(TensorSettings(name="y", labels="names.txt"), TensorSettings(name="other")),
    )
    got = describe.config(SIGNATURE, settings, "onnxruntime_onnx", "cuda:1", (1, 4, 8))
    assert as_dict(theirs(service_pb2.ModelConfigResponse, got)) == {
        "config": {
            "name": "m",
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "max_batch_size": 8,
            "version_policy": {"latest": {"num_versions": 2}},
            "input": [
                {"name": "x", "data_type": "TYPE_FP32", "dims": ["-1", "4"]},
                {"name": "s", "data_type": "TYPE_STRING", "optional": True},
            ],
            "output": [{"name": "y", "data_type": "TYPE_BF16", "dims": ["2"], "label_filename": "names.txt"}],
            "instance_group": [{"name": "m_0", "kind": "KIND_GPU", "count": 3, "gpus": [1]}],
            "default_model_filename": "model.onnx",
            "dynamic_batching": {
                "preferred_batch_size": [1, 4, 8],
                "max_queue_delay_microseconds": "250",
                "priority_levels": "3",
                "default_priority_level": "2",
                "default_queue_policy": {
                    "default_timeout_microseconds": "700",
                    "allow_timeout_override": True,
                    "max_queue_size": 9,
                },
            },
        }
    }


def test_config_of_a_model_that_does_not_batch() -> None:
    got = describe.config(FLAT, ModelSettings(), "fake", "cpu", (1,))
    assert as_dict(got)["config"] == {
        "name": "flat",
        "platform": "fake",
        "backend": "fake",
        "input": [{"name": "x", "data_type": "TYPE_INT64", "dims": ["3"]}],
        "instance_group": [{"name": "flat_0", "kind": "KIND_CPU", "count": 1}],
    }


def test_version_policies() -> None:
    def policy(versions: VersionPolicy) -> dict[str, Any]:
        got: dict[str, Any] = as_dict(describe.config(FLAT, ModelSettings(versions=versions), "fake", "cpu", (1,)))
        policy: dict[str, Any] = got["config"]["version_policy"]
        return policy

    assert policy(VersionPolicy(policy="all")) == {"all": {}}
    assert policy(VersionPolicy(policy="specific", specific=(3, 5))) == {"specific": {"versions": ["3", "5"]}}


def test_statistics() -> None:
    stats = Stats(
        inference_count=12,
        execution_count=3,
        last_inference_ms=1_700_000_000_000,
        durations={"success": (4, 40), "fail": (1, 2), "queue": (4, 8), "compute_infer": (4, 20)},
        batches=[(4, {"compute_input": (3, 1), "compute_infer": (3, 20), "compute_output": (3, 2)})],
        memory_bytes=4096,
    )
    rows = [
        (VersionKey("m", 3), "cuda:1", stats),
        (VersionKey("m", 4), "cuda", Stats(memory_bytes=1)),
        (VersionKey("n", 1), "cpu", Stats()),
    ]
    got = theirs(service_pb2.ModelStatisticsResponse, describe.statistics(rows))
    assert as_dict(got)["model_stats"][0] == {
        "name": "m",
        "version": "3",
        "last_inference": "1700000000000",
        "inference_count": "12",
        "execution_count": "3",
        "inference_stats": {
            "success": {"count": "4", "ns": "40"},
            "fail": {"count": "1", "ns": "2"},
            "queue": {"count": "4", "ns": "8"},
            "compute_infer": {"count": "4", "ns": "20"},
        },
        "batch_stats": [
            {
                "batch_size": "4",
                "compute_input": {"count": "3", "ns": "1"},
                "compute_infer": {"count": "3", "ns": "20"},
                "compute_output": {"count": "3", "ns": "2"},
            }
        ],
        "memory_usage": [{"type": "GPU", "id": "1", "byte_size": "4096"}],
    }
    assert as_dict(got.model_stats[1])["memory_usage"] == [{"type": "GPU", "byte_size": "1"}]
    assert as_dict(got.model_stats[2]) == {"name": "n", "version": "1", "inference_stats": {}}


def test_index() -> None:
    got = describe.index([("m", "3", "READY", ""), ("n", "", "UNAVAILABLE", "unloaded")])
    assert as_dict(theirs(service_pb2.RepositoryIndexResponse, got)) == {
        "models": [{"name": "m", "version": "3", "state": "READY"}, {"name": "n", "state": "UNAVAILABLE", "reason": "unloaded"}]
    }
