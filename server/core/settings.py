"""Settings of one model (`model.toml`) and of the server (`--config FILE` and flags). **Pure.**

Every table is frozen and refuses unknown keys: a misspelt setting is an error at load, never silently ignored. Each field
is described in docs/CONFIG.md, which a test compares with this file.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from server.core.door_settings import AccessSettings, KeepaliveSettings, LimitSettings, TlsSettings, check_door
from server.core.feature_settings import FeatureStoreSettings, ModelFeatures
from server.core.monitoring_settings import ModelMonitoring, MonitoringSettings, ValidationSettings
from server.core.table import Table as _Table
from server.core.tensors import NUMPY_DTYPES

DEFAULT_MAX_BATCH = 64
STANDARD_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes that are warmed by default; above 256 in steps of 256 up to the model's cap."""


class TensorSettings(_Table):
    """Overrides or states one input or output. `shape` leaves the batch dimension out; -1 is free per request.

    `labels`, of outputs only: a file with the names of its classes, one a line, below the version's or the model's folder.
    `pad_to`, of inputs only: the sizes that free dimensions are padded up to with `pad_value`, so that requests of different
    sizes share a batch.
    """

    name: str
    datatype: str | None = None
    shape: tuple[int, ...] | None = None
    optional: bool = False
    labels: str | None = None
    pad_to: tuple[Annotated[int, Field(gt=0, lt=2**31)], ...] = ()
    pad_value: float | int = 0

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.datatype is not None and self.datatype not in NUMPY_DTYPES:
            raise ValueError(f"unknown datatype '{self.datatype}'; one of {', '.join(NUMPY_DTYPES)}")
        if self.shape is not None and any(dim < -1 or dim == 0 for dim in self.shape):
            raise ValueError(f"dimensions of '{self.name}' must be positive, or -1 for one that varies")
        if self.labels is not None and not {"", ".", ".."}.isdisjoint(self.labels.split("/")):
            raise ValueError(f"labels of '{self.name}' must be a plain relative path, without '.' and '..'")
        if list(self.pad_to) != sorted(set(self.pad_to)):
            raise ValueError(f"pad_to of '{self.name}' must be ascending and distinct")
        if self.pad_value and not self.pad_to:
            raise ValueError(f"pad_value of '{self.name}' needs pad_to, which is not stated")
        return self


class BatchingSettings(_Table):
    """How rows of several requests become one execution. `max_queue_delay_us` 0: never wait while the device is idle."""

    buckets: tuple[Annotated[int, Field(gt=0)], ...] = ()
    padding: bool = True
    max_queue_delay_us: int = Field(0, ge=0, le=10_000_000)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError("buckets must be ascending and distinct")
        return self


class QueueSettings(_Table):
    """Limits and order of one version's queue. Priorities: 1 is the most urgent, `priority_levels` the least.

    `default_timeout_us` None: the server's default; 0: none. `share`: the part of the device's time that goes to this version
    before any other's turn; 0: none.
    """

    max_requests: int = Field(0, ge=0)
    priority_levels: int = Field(0, ge=0, le=1000)
    default_priority: int = Field(0, ge=0)
    default_timeout_us: int | None = Field(None, ge=0)
    share: float = Field(0.0, ge=0, lt=1)
    allow_timeout_override: bool = True
    early_drop: bool = True

    @model_validator(mode="after")
    def _within(self) -> Self:
        if not min(1, self.priority_levels) <= self.default_priority <= self.priority_levels:
            raise ValueError("default_priority must be one of the levels, 1 to priority_levels (0 without levels)")
        return self


class CacheSettings(_Table):
    """Answers of a version that are given again to a request with the same inputs. `max_bytes` 0: none are kept."""

    max_bytes: int = Field(0, ge=0)


class WarmupSettings(_Table):
    """Runs per bucket before a version may become READY; the fastest of them is the bucket's first cost estimate."""

    runs: int = Field(3, ge=1, le=1000)


class VersionPolicy(_Table):
    """Which versions should be served: the newest `count`, all, or exactly `specific`."""

    policy: Literal["latest", "all", "specific"] = "latest"
    count: int = Field(1, ge=1)
    specific: tuple[Annotated[int, Field(gt=0)], ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.policy == "specific") != bool(self.specific):
            raise ValueError("'specific' lists versions exactly when policy is \"specific\"")
        return self


class OnnxSettings(_Table):
    """ONNX Runtime session options. Providers are tried in the order given.

    `intra_op_threads` 0: one per CPU that this process may run on; `inter_op_threads` 0: ONNX Runtime decides.
    `cuda_graphs` to `arena_shrinkage` are the CUDA provider's, what follows is TensorRT's.
    """

    intra_op_threads: int = Field(0, ge=0, le=1024)
    inter_op_threads: int = Field(1, ge=0, le=1024)
    graph_optimization: Literal["disabled", "basic", "extended", "all"] = "all"
    providers: tuple[Literal["cpu", "cuda", "tensorrt"], ...] = ()
    device_id: int = Field(0, ge=0)
    gpu_memory_limit_bytes: int = Field(0, ge=0)
    cuda_graphs: bool = False
    cudnn_conv_search: Literal["exhaustive", "heuristic", "default"] = "exhaustive"
    arena_extend: Literal["same_as_requested", "next_power_of_two"] = "same_as_requested"
    arena_shrinkage: bool = False
    tensorrt_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    tensorrt_workspace_bytes: int = Field(0, ge=0)
    tensorrt_cache: str = ""

    @model_validator(mode="after")
    def _memory_stays(self) -> Self:
        if self.cuda_graphs and self.arena_shrinkage:
            raise ValueError("arena_shrinkage gives memory away that captured CUDA graphs (cuda_graphs) use")
        return self


class TorchSettings(_Table):
    """Where and how a torch program runs. `intra_op_threads` 0: one per CPU that this process may run on.

    `precision` stands in for FP32 within the program; inputs and outputs keep their types.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    device_id: int = Field(0, ge=0)
    intra_op_threads: int = Field(0, ge=0, le=1024)
    precision: Literal["as_saved", "bf16", "fp16"] = "as_saved"
    channels_last: bool = False
    compile: Literal["off", "default", "max_autotune"] = "off"
    cuda_graphs: bool = True


class TextSettings(_Table):
    """Texts in front of a model of token ids. `token_buckets`: lengths that rows are filled up to; the last is always the most.

    `max_tokens` 0: what `tokenizer.json` says, else the largest bucket; what a text has beyond is cut off. A text of more than
    `max_bytes` is refused. `backend`: of the model file, where there are two.
    """

    token_buckets: tuple[Annotated[int, Field(gt=0)], ...] = (16, 32, 64, 128, 256)
    max_tokens: int = Field(0, ge=0)
    max_bytes: int = Field(2**20, gt=0)
    backend: Literal["onnx", "torch"] | None = None

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if not self.token_buckets or list(self.token_buckets) != sorted(set(self.token_buckets)):
            raise ValueError("token_buckets must be ascending and distinct, and there must be one")
        return self


class FakeSettings(_Table):
    """The calibrated fake backend: a batch of b rows takes `t0_us + row_us * b`, or its entry in `table_us`,
    or in the table of the document `measured`, which a load has written.

    A decoupled version takes that long for each answer. It gives as many as the input `responses_input` says, `responses`
    without one. On an "accelerator" with `device_bytes` of memory a version holds `weights_bytes`, and `row_bytes` for each row
    that executes; a request whose input `kills_input` is not 0 breaks the device for good.
    """

    t0_us: float = Field(1000.0, ge=0)
    row_us: float = Field(10.0, ge=0)
    table_us: dict[Annotated[int, Field(gt=0)], Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    measured: str = ""
    responses: int = Field(1, ge=0)
    responses_input: str = ""
    device: Literal["cpu", "accelerator"] = "cpu"
    device_id: int = Field(0, ge=0)
    device_bytes: int = Field(16 * 2**30, gt=0)
    weights_bytes: int = Field(0, ge=0)
    row_bytes: int = Field(0, ge=0)
    kills_input: str = ""

    @model_validator(mode="after")
    def _one_table(self) -> Self:
        if self.measured and self.table_us:
            raise ValueError("'measured' names a table that would replace 'table_us': state one of them")
        return self


class ModelSettings(_Table):
    """`model.toml`. Everything has a default: a bare model file needs no settings at all.

    `max_batch` None: read from the file (64 rows where its first dimension is free); 0: the model does not batch.
    `decoupled`: a request may have any number of answers; it comes by a stream and runs by itself. `devices`: numbers of the
    devices that each version is loaded on, with `instances` on each; empty: on the one that its backend's table names.
    """

    backend: Literal["onnx", "torch", "text", "fake"] | None = None
    max_batch: int | None = Field(None, ge=0, le=65_536)
    inputs: tuple[TensorSettings, ...] = ()
    outputs: tuple[TensorSettings, ...] = ()
    batching: BatchingSettings = BatchingSettings()
    queue: QueueSettings = QueueSettings()
    cache: CacheSettings = CacheSettings()
    warmup: WarmupSettings = WarmupSettings()
    versions: VersionPolicy | None = None
    instances: int = Field(1, ge=1, le=64)
    devices: tuple[Annotated[int, Field(ge=0)], ...] = Field((), max_length=64)
    decoupled: bool = False
    load_retries: int = Field(0, ge=0, le=100)
    onnx: OnnxSettings = OnnxSettings()
    torch: TorchSettings = TorchSettings()
    text: TextSettings = TextSettings()
    fake: FakeSettings = FakeSettings()
    features: ModelFeatures | None = None
    monitoring: ModelMonitoring = ModelMonitoring()
    validation: ValidationSettings = ValidationSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(tensor.labels is not None for tensor in self.inputs):
            raise ValueError("labels are for outputs: an input has no classes")
        if any(tensor.pad_to for tensor in self.outputs):
            raise ValueError("pad_to is for inputs: an output is as large as the model makes it")
        if len(set(self.devices)) < len(self.devices):
            raise ValueError("devices must be distinct")
        largest = DEFAULT_MAX_BATCH if self.max_batch is None else self.max_batch
        if self.batching.buckets and self.batching.buckets[-1] > largest:
            raise ValueError(f"buckets must not exceed max_batch, which is {largest}")
        return self

    @model_validator(mode="after")
    def _one_answer_to_keep(self) -> Self:
        if self.decoupled and self.cache.max_bytes:
            raise ValueError("a decoupled model cannot have a response cache: a request may have any number of answers")
        if self.features is not None and self.cache.max_bytes:
            raise ValueError("a model with features cannot have a response cache: features change between equal requests")
        if self.features is not None and self.decoupled:
            raise ValueError("a decoupled model cannot have features")
        return self


def placed(settings: ModelSettings, device: int) -> ModelSettings:
    """The settings of one device of a version that is on several: whichever backend it has finds that device's number.

    >>> placed(ModelSettings(devices=(0, 1)), 1).onnx.device_id
    1
    """
    tables = {name: getattr(settings, name).model_copy(update={"device_id": device}) for name in ("onnx", "torch", "fake")}
    return settings.model_copy(update=tables)


class TraceSettings(_Table):
    """Which requests are traced, and where traces go. `level` empty: none are; callers may change level, rate and count."""

    mode: Literal["triton", "opentelemetry"] = "triton"
    level: tuple[Literal["TIMESTAMPS", "TENSORS"], ...] = ()
    rate: int = Field(1000, ge=0, lt=2**32)
    count: int = Field(-1, ge=-1, lt=2**31)
    file: str = ""
    log_frequency: int = Field(0, ge=0, lt=2**32)
    otlp_endpoint: str = "http://127.0.0.1:4317"
    service_name: str = "podium"
    resource: dict[str, str] = Field(default_factory=dict)
    buffer_traces: int = Field(10_000, gt=0)
    buffer_bytes: int = Field(64 * 2**20, gt=0)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.level and self.mode == "triton" and not self.file:
            raise ValueError("mode 'triton' writes to 'file', which is not stated")
        if self.level and self.mode == "triton" and self.rate == 0:
            raise ValueError("rate 0 (only what callers trace) needs mode 'opentelemetry'")
        if "TENSORS" in self.level and self.mode == "opentelemetry":
            raise ValueError("mode 'opentelemetry' has no level TENSORS")
        return self


class ServerSettings(_Table):
    """The server process. Flags of `podium serve` override the file given with `--config`.

    `device_slots` 0: 3 on GPUs, 1 on the CPU.
    """

    repository: str
    grpc_address: str = "127.0.0.1:8001"
    http_address: str = "127.0.0.1:8002"
    data_plane: Literal["auto", "native", "python"] = "auto"
    io_threads: int = Field(1, ge=1, le=64)
    reuse_port: bool = False
    control_mode: Literal["poll", "explicit"] = "poll"
    load_models: tuple[str, ...] = ()
    rescan_s: float = Field(15.0, gt=0)
    settle_s: float = Field(1.0, ge=0)
    drain_delay_s: float = Field(5.0, ge=0)
    drain_grace_s: float = Field(30.0, ge=0)
    restart_on_device_loss: bool = True
    max_device_restarts: int = Field(3, ge=0, le=100)
    device_restarts_window_s: float = Field(600.0, gt=0)
    max_message_bytes: int = Field(256 * 2**20, gt=0, lt=2**31)
    max_inflight_bytes: int = Field(2**30, gt=0)
    max_inflight_requests: int = Field(100_000, gt=0)
    max_stream_requests: int = Field(1000, gt=0)
    max_stream_bytes: int = Field(64 * 2**20, gt=0)
    default_timeout_us: int = Field(0, ge=0)
    device_slots: int = Field(0, ge=0, le=3)
    device_memory_budget_ratio: float = Field(0.95, gt=0, le=1)
    measured_dir: str = ""
    overload_order: Literal["deadline", "density"] = "deadline"
    allow_client_shm: bool = False
    libcudart: str = ""
    usage_dir: str = ""
    usage_flush_s: float = Field(10.0, gt=0)
    server_name: str = Field("", pattern=r"^(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    trace: TraceSettings = TraceSettings()
    features: FeatureStoreSettings = FeatureStoreSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    reflection: bool = True
    compression: Literal["none", "gzip", "deflate"] = "none"
    error_codes: Literal["triton", "strict"] = "triton"
    tls: TlsSettings = TlsSettings()
    access: AccessSettings = AccessSettings()
    limits: LimitSettings = LimitSettings()
    keepalive: KeepaliveSettings = KeepaliveSettings()

    @model_validator(mode="after")
    def _safe_door(self) -> Self:
        check_door(self.grpc_address, self.tls, self.access)
        return self


def buckets_for(max_batch: int, batching: BatchingSettings) -> tuple[int, ...]:
    """The batch sizes to warm, ascending; the last one is always `max_batch`. Non-batching models have the bucket 1.

    >>> buckets_for(10, BatchingSettings())
    (1, 2, 4, 8, 10)
    """
    if max_batch == 0:
        return (1,)
    chosen = batching.buckets or (*STANDARD_BUCKETS, *range(512, max_batch, 256))
    return (*(size for size in chosen if size < max_batch), max_batch)
