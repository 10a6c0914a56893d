"""Answers about models (metadata, configuration, statistics, index) from plain values. Pure over values.

Floor 6: protobuf on one side, the words of the core on the other. It asks nobody anything: what it says is what its caller
hands it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from protos.grpc_service_pb2 import (
    InferBatchStatistics,
    InferResponseStatistics,
    InferStatistics,
    MemoryUsage,
    ModelConfigResponse,
    ModelMetadataResponse,
    ModelStatistics,
    ModelStatisticsResponse,
    RepositoryIndexResponse,
    StatisticDuration,
)
from protos.model_config_pb2 import (
    DataType,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelQueuePolicy,
    ModelResponseCache,
    ModelVersionPolicy,
)
from server.core.settings import ModelSettings, VersionPolicy
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, TensorSpec
from server.core.versions import VersionKey

DATA_TYPES: dict[str, DataType.ValueType] = {
    name: DataType.Value("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}") for name in NUMPY_DTYPES
}
"""Protocol datatypes in the words of the model configuration."""

BACKENDS: dict[str, tuple[str, str]] = {
    "onnxruntime_onnx": ("onnxruntime", "model.onnx"),
    "pytorch_libtorch": ("pytorch", "program.pt2"),
}
"""Backend and file name that clients know a platform by; any other platform is its own backend and has no file."""

Duration = tuple[int, int]
"""How often, and how many nanoseconds in all."""


class VersionStats(Protocol):
    """Cumulative statistics of one version."""

    @property
    def inference_count(self) -> int:
        """Rows that were executed."""
        ...

    @property
    def execution_count(self) -> int:
        """Batches that were executed."""
        ...

    @property
    def last_inference_ms(self) -> int:
        """Milliseconds since 1970; 0 where there was none."""
        ...

    @property
    def durations(self) -> Mapping[str, Duration]:
        """Requests and their time, by the field names of InferStatistics."""
        ...

    @property
    def batches(self) -> Sequence[tuple[int, Mapping[str, Duration]]]:
        """Rows of a batch; executions of that size and their time, by the field names of InferBatchStatistics."""
        ...

    @property
    def answers(self) -> Mapping[int, Mapping[str, Duration]]:
        """Of a decoupled version: answers by their place in a request, by the field names of InferResponseStatistics."""
        ...


def metadata(
    signature: Signature, versions: Iterable[int], platform: str, properties: Mapping[str, str] | None = None
) -> ModelMetadataResponse:
    """ModelMetadata: shapes with the -1 batch dimension where the model batches; `versions` as given."""

    def tensor(spec: TensorSpec) -> ModelMetadataResponse.TensorMetadata:
        return ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=signature.full_shape(spec))

    return ModelMetadataResponse(
        name=signature.model,
        versions=map(str, versions),
        platform=platform,
        inputs=map(tensor, signature.inputs),
        outputs=map(tensor, signature.outputs),
        properties=properties,
    )


def config(
    signature: Signature, settings: ModelSettings, platform: str, device: str, buckets: Sequence[int]
) -> ModelConfigResponse:
    """ModelConfig: what is in force for a version. `buckets` are its preferred batch sizes; `device`: where it is, or one
    of the several devices that its settings name.

    What a client reads here it may change and send back with a Load: `server.transport.config_override` understands
    every field set here.
    """
    backend, filename = BACKENDS.get(platform, (platform, ""))
    kind, numbers = _device(device)
    labels = {output.name: output.labels for output in settings.outputs}
    group = ModelInstanceGroup(
        name=f"{signature.model}_0",
        kind=ModelInstanceGroup.KIND_CPU if kind == "CPU" else ModelInstanceGroup.KIND_GPU,
        count=settings.instances,
        gpus=settings.devices or numbers,
    )
    described = ModelConfig(
        name=signature.model,
        platform=platform,
        backend=backend,
        max_batch_size=signature.max_batch,
        input=[
            ModelInput(name=spec.name, data_type=DATA_TYPES[spec.datatype], dims=spec.shape, optional=spec.optional)
            for spec in signature.inputs
        ],
        output=[
            ModelOutput(
                name=spec.name,
                data_type=DATA_TYPES[spec.datatype],
                dims=spec.shape,
                label_filename=labels.get(spec.name) or "",
            )
            for spec in signature.outputs
        ],
        instance_group=[group],
        default_model_filename=filename,
    )
    if settings.decoupled:
        described.model_transaction_policy.decoupled = True
    if settings.versions is not None:
        described.version_policy.CopyFrom(_version_policy(settings.versions))
    if settings.cache.max_bytes:
        described.response_cache.CopyFrom(ModelResponseCache(enable=True))
    if signature.max_batch:
        described.dynamic_batching.CopyFrom(_dynamic_batching(settings, buckets))
    return ModelConfigResponse(config=described)


def statistics(rows: Iterable[tuple[VersionKey, Mapping[str, int], VersionStats]]) -> ModelStatisticsResponse:
    """ModelStatistics: one entry per (version, bytes that it holds by device, statistics), in the order given."""
    return ModelStatisticsResponse(model_stats=[_statistics(key, held, stats) for key, held, stats in rows])


def index(rows: Iterable[tuple[str, str, str, str]]) -> RepositoryIndexResponse:
    """RepositoryIndex: one entry per (model, version or "", state, reason), in the order given."""
    return RepositoryIndexResponse(
        models=[
            RepositoryIndexResponse.ModelIndex(name=name, version=version, state=state, reason=reason)
            for name, version, state, reason in rows
        ]
    )


def _device(device: str) -> tuple[str, list[int]]:
    """Kind and numbers of a device: "cpu" is ("CPU", []), "cuda:1" and "fake:1" are ("GPU", [1]), "cuda" is ("GPU", [])."""
    if device == "cpu":
        return "CPU", []
    _, _, number = device.partition(":")
    return "GPU", [int(number)] if number else []


def _version_policy(versions: VersionPolicy) -> ModelVersionPolicy:
    if versions.policy == "all":
        return ModelVersionPolicy(all=ModelVersionPolicy.All())
    if versions.policy == "specific":
        return ModelVersionPolicy(specific=ModelVersionPolicy.Specific(versions=versions.specific))
    return ModelVersionPolicy(latest=ModelVersionPolicy.Latest(num_versions=versions.count))


def _dynamic_batching(settings: ModelSettings, buckets: Sequence[int]) -> ModelDynamicBatching:
    queue = settings.queue
    return ModelDynamicBatching(
        preferred_batch_size=buckets,
        max_queue_delay_microseconds=settings.batching.max_queue_delay_us,
        priority_levels=queue.priority_levels,
        default_priority_level=queue.default_priority,
        default_queue_policy=ModelQueuePolicy(
            default_timeout_microseconds=queue.default_timeout_us or 0,
            allow_timeout_override=queue.allow_timeout_override,
            max_queue_size=queue.max_requests,
        ),
    )


def _statistics(key: VersionKey, held: Mapping[str, int], stats: VersionStats) -> ModelStatistics:
    return ModelStatistics(
        name=key.model,
        version=str(key.version),
        last_inference=stats.last_inference_ms,
        inference_count=stats.inference_count,
        execution_count=stats.execution_count,
        inference_stats=InferStatistics(**_durations(stats.durations)),
        batch_stats=[InferBatchStatistics(batch_size=rows, **_durations(parts)) for rows, parts in stats.batches],
        response_stats={str(place): InferResponseStatistics(**_durations(parts)) for place, parts in stats.answers.items()},
        # 0 is "cannot tell", which no entry says better than one of no bytes
        memory_usage=[_memory(device, nbytes) for device, nbytes in held.items() if nbytes],
    )


def _memory(device: str, nbytes: int) -> MemoryUsage:
    kind, numbers = _device(device)
    return MemoryUsage(type=kind, id=numbers[0] if numbers else 0, byte_size=nbytes)


def _durations(durations: Mapping[str, Duration]) -> dict[str, StatisticDuration]:
    return {name: StatisticDuration(count=count, ns=ns) for name, (count, ns) in durations.items()}
