"""What clients are told about models, read back with their own client's messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2, service_pb2

from server.core.settings import (
    BatchingSettings,
    CacheSettings,
    ModelSettings,
    QueueSettings,
    TensorSettings,
    VersionPolicy,
)
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
    answers: Mapping[int, Mapping[str, tuple[int, int]]] = field(default_factory=dict)


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


@pytest.mark.parametrize("max_bytes", [0, 1])
def test_a_response_cache_is_shown_where_there_is_one(max_bytes: int) -> None:
    settings = ModelSettings(cache=CacheSettings(max_bytes=max_bytes))
    got = describe.config(SIGNATURE, settings, "fake", "cpu", (1,)).config
    assert (got.HasField("response_cache"), got.response_cache.enable) == (bool(max_bytes), bool(max_bytes))


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


@pytest.mark.parametrize(("device", "kind"), [("cuda:0", "KIND_GPU"), ("fake:0", "KIND_GPU"), ("cpu", "KIND_CPU")])
def test_config_names_every_device_of_a_version(device: str, kind: str) -> None:
    settings = ModelSettings(instances=2, devices=() if device == "cpu" else (0, 3))
    got = theirs(service_pb2.ModelConfigResponse, describe.config(SIGNATURE, settings, "fake", device, (1,))).config
    group: dict[str, Any] = {"name": "m_0", "kind": kind, "count": 2}
    assert as_dict(got)["instance_group"] == [group if device == "cpu" else group | {"gpus": [0, 3]}]


def test_statistics() -> None:
    stats = Stats(
        inference_count=12,
        execution_count=3,
        last_inference_ms=1_700_000_000_000,
        durations={"success": (4, 40), "fail": (1, 2), "queue": (4, 8), "compute_infer": (4, 20)},
        batches=[(4, {"compute_input": (3, 1), "compute_infer": (3, 20), "compute_output": (3, 2)})],
    )
    rows = [
        (VersionKey("m", 3), {"cuda:1": 4096, "cuda:3": 2048}, stats),
        (VersionKey("m", 4), {"cuda": 1}, Stats()),
        (VersionKey("n", 1), {"cpu": 0}, Stats()),
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
        "memory_usage": [
            {"type": "GPU", "id": "1", "byte_size": "4096"},
            {"type": "GPU", "id": "3", "byte_size": "2048"},
        ],
    }
    assert as_dict(got.model_stats[1])["memory_usage"] == [{"type": "GPU", "byte_size": "1"}]
    assert as_dict(got.model_stats[2]) == {"name": "n", "version": "1", "inference_stats": {}}


def test_index() -> None:
    got = describe.index([("m", "3", "READY", ""), ("n", "", "UNAVAILABLE", "unloaded")])
    assert as_dict(theirs(service_pb2.RepositoryIndexResponse, got)) == {
        "models": [{"name": "m", "version": "3", "state": "READY"}, {"name": "n", "state": "UNAVAILABLE", "reason": "unloaded"}]
    }


def test_config_says_where_a_version_is_decoupled() -> None:
    def described(settings: ModelSettings) -> Any:
        answer = describe.config(FLAT, settings, "fake", "cpu", (1,))
        return theirs(service_pb2.ModelConfigResponse, answer).config

    assert described(ModelSettings(decoupled=True)).model_transaction_policy.decoupled
    assert not described(ModelSettings()).HasField("model_transaction_policy")


def test_statistics_of_a_decoupled_version_tell_its_answers_apart() -> None:
    stats = Stats(answers={0: {"compute_infer": (2, 7), "success": (2, 9)}, 1: {"empty_response": (1, 4)}})
    got = theirs(service_pb2.ModelStatisticsResponse, describe.statistics([(VersionKey("m", 1), {"cpu": 0}, stats)]))
    assert as_dict(got.model_stats[0])["response_stats"] == {
        "0": {"compute_infer": {"count": "2", "ns": "7"}, "success": {"count": "2", "ns": "9"}},
        "1": {"empty_response": {"count": "1", "ns": "4"}},
    }
