"""`inference.GRPCInferenceService` over the use cases: decode, ask, encode. Nothing here decides anything.

`ModelInfer` is the hot path (`infer.py`). Calls that may take long (Load, Unload) wait on a thread, never on the loop.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from protos import grpc_service_pb2 as pb
from protos.grpc_service_pb2_grpc import GRPCInferenceServiceServicer
from server.core.errors import InvalidRequest, Unsupported
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.lifecycle.replica import Replica
from server.service.control import Control
from server.transport import describe, shared_memory_calls
from server.transport.config_override import settings_from_config
from server.transport.ending import abort
from server.transport.infer import Inference
from server.transport.runtime_settings import RuntimeSettings
from server.transport.shared_memory import Regions
from server.transport.status import ending_for
from server.transport.streams import Streams
from server.transport.waiting import WaitingThreads

Context = grpc.aio.ServicerContext[Any, Any]
Response = TypeVar("Response")

_WAITING_THREADS = 8
"""Loads and Unloads that wait at once; one more waits for a thread, which costs nothing: the lifecycle does one at a time."""

_FILE_PREFIX = "file:"

EXTENSIONS = (
    *("classification", "model_repository", "schedule_policy", "model_configuration"),
    *("binary_tensor_data", "parameters", "statistics", "trace", "logging"),
)
"""What ServerMetadata always reports: only what is implemented."""


def _about_memory(respond: Callable[[Regions, Any], Any]) -> Any:
    """A call about shared memory."""

    async def call(self: "Servicer", request: Any, context: Context) -> Any:
        return await answer(context, lambda: respond(self.regions, request))

    return call


class Servicer(GRPCInferenceServiceServicer):
    """One servicer for all calls. Ownership: the event loop it was made on."""

    def __init__(
        self,
        inference: Inference,
        streams: Streams,
        control: Control,
        ready: Callable[[], bool],
        server_version: str,
        runtime_settings: RuntimeSettings,
        regions: Regions | None = None,
        live: Callable[[], bool] = lambda: True,
    ) -> None:
        self._inference = inference
        self._streams = streams
        self._control = control
        self._ready = ready
        self._live = live
        self._server_version = server_version
        self.regions = regions or Regions()
        self._runtime_settings = runtime_settings
        self._waiting = WaitingThreads(_WAITING_THREADS)

    SystemSharedMemoryStatus = _about_memory(shared_memory_calls.system_status)
    SystemSharedMemoryRegister = _about_memory(shared_memory_calls.system_register)
    SystemSharedMemoryUnregister = _about_memory(shared_memory_calls.system_unregister)
    CudaSharedMemoryStatus = _about_memory(shared_memory_calls.cuda_status)
    CudaSharedMemoryUnregister = _about_memory(shared_memory_calls.cuda_unregister)

    async def CudaSharedMemoryRegister(  # noqa: N802
        self, request: pb.CudaSharedMemoryRegisterRequest, context: Context
    ) -> pb.CudaSharedMemoryRegisterResponse:
        """Memory of a GPU, opened on a thread."""
        try:
            return await shared_memory_calls.cuda_register(self.regions, self._waiting, request)
        except Exception as error:  # noqa: BLE001 - every failure ends the call with a status
            await abort(context, error)
        finally:
            del context  # as in ModelInfer

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        """One inference: answered by exactly one ticket, whatever becomes of the call."""
        try:
            return await self._inference.once(request, self._inference.call_of(context))
        except Exception as error:  # noqa: BLE001 - every failure ends the call with a status
            await abort(context, error)
        finally:
            del context  # it has the error, whose traceback leads here: a circle, as in `Inference.once`

    async def ModelStreamInfer(self, requests: Any, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """Many inferences on one call. `requests` is not used: `Streams` reads from the context, and writes to it."""
        try:
            status = await self._streams.serve(context)
        except Exception as error:  # noqa: BLE001 - every failure ends the call with a status
            status = ending_for(error)
        try:
            if status is not None:
                await context.abort(*status)
        finally:
            del context  # as in ModelInfer

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: N802
        """The process answers, and can be of use again without being replaced; the same word as /healthz."""
        return pb.ServerLiveResponse(live=self._live())

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:  # noqa: N802
        """Whether the server wants traffic; the same word as /readyz and grpc.health.v1."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:  # noqa: N802
        """Name, version and extensions. Clients' own tests expect the name "triton": it names the protocol they speak."""
        extensions = (*EXTENSIONS, "system_shared_memory") if self.regions.allowed else EXTENSIONS
        if self.regions.cuda is not None:
            extensions = (*extensions, "cuda_shared_memory")
        return pb.ServerMetadataResponse(name="triton", version=self._server_version, extensions=extensions)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: N802
        """Whether a request to this model would be admitted; an unknown model is not ready, which is no error."""
        return await answer(context, lambda: pb.ModelReadyResponse(ready=self._control.is_ready(request.name, request.version)))

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:  # noqa: N802
        """Inputs and outputs of the version that would answer."""

        def respond() -> pb.ModelMetadataResponse:
            found = self._control.describe(request.name, request.version)
            replica = found.replica
            return describe.metadata(replica.signature, found.versions, replica.backend.platform)

        return await answer(context, respond)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:  # noqa: N802
        """The configuration in force for the version that would answer."""

        def respond() -> pb.ModelConfigResponse:
            replica = self._control.describe(request.name, request.version).replica
            return describe.config(
                replica.signature, replica.settings, replica.backend.platform, replica.device, replica.buckets
            )

        return await answer(context, respond)

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:  # noqa: N802
        """Cumulative statistics of the READY versions asked for."""

        def respond() -> pb.ModelStatisticsResponse:
            replicas = self._control.statistics(request.name, request.version)
            return describe.statistics(map(_statistics, replicas))

        return await answer(context, respond)

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:  # noqa: N802
        """Every version on disk or in memory, with the reason where it does not serve."""

        def respond() -> pb.RepositoryIndexResponse:
            _one_repository(request.repository_name)
            rows = self._control.index(request.ready)
            return describe.index((row.model, str(row.version or ""), row.state, row.reason) for row in rows)

        return await answer(context, respond)

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load or reload a model, with other settings if `config` has any, from other files if there are `file:` parameters;
        returns when it serves.
        """

        def respond() -> pb.RepositoryModelLoadResponse:
            _one_repository(request.repository_name)
            name = request.model_name
            text, files = _load_parameters(request)
            override = None
            if text is not None:
                # of a model that brings its own files nothing in the repository counts
                base = ModelSettings() if files else self._control.settings_on_disk(name)
                override = settings_from_config(text, name, base)
            self._control.load(name, override, files)
            return pb.RepositoryModelLoadResponse()

        try:
            return await answer_on_thread(context, self._waiting, respond)
        finally:
            del context  # as in ModelInfer: a request may bring files

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Take a model out of service; returns when its last request has ended. No model here depends on another."""

        def respond() -> pb.RepositoryModelUnloadResponse:
            _one_repository(request.repository_name)
            for name, parameter in request.parameters.items():
                if name != "unload_dependents":
                    raise InvalidRequest(f"unrecognized unload parameter '{name}'.")
                if parameter.WhichOneof("parameter_choice") != "bool_param":
                    raise InvalidRequest("invalid value type for 'unload_dependents' parameter, expected bool_param.")
            self._control.unload(request.model_name)
            return pb.RepositoryModelUnloadResponse()

        return await answer_on_thread(context, self._waiting, respond)

    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:  # noqa: N802
        """Change what is traced, of one model or of all; the settings in force then."""
        return await answer(context, lambda: self._runtime_settings.trace(request))

    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:  # noqa: N802
        """Change what is logged; the settings in force then."""
        return await answer(context, lambda: self._runtime_settings.log(request))


def _one_repository(name: str) -> None:
    if name:
        raise Unsupported("'repository_name' specification is not supported")


def _statistics(replica: Replica) -> tuple[VersionKey, dict[str, int], Any]:
    """What a version has done, and the memory that it holds by device."""
    stats = replica.recorder.snapshot()
    held = {each.device: each.memory_bytes for each in replica.everywhere}
    return replica.key, held if replica.siblings else {replica.device: stats.memory_bytes}, stats


def _load_parameters(request: pb.RepositoryModelLoadRequest) -> tuple[str | None, dict[str, bytes]]:
    """The text of `config`, and the given files by path."""
    text: str | None = None
    files: dict[str, bytes] = {}
    for name, parameter in request.parameters.items():
        is_file = name.startswith(_FILE_PREFIX)
        if not is_file and name != "config":
            raise InvalidRequest(f"unrecognized load parameter '{name}'.")
        expected = "bytes_param" if is_file else "string_param"
        if parameter.WhichOneof("parameter_choice") != expected:
            raise InvalidRequest(f"invalid value type for load parameter '{name}', expected {expected}.")
        if is_file:
            files[name.removeprefix(_FILE_PREFIX)] = parameter.bytes_param
        else:
            text = parameter.string_param
    if files and text is None:
        raise InvalidRequest("Load parameter 'config' must be specified for model file override")
    return text, files


async def answer(context: Context, respond: Callable[[], Response]) -> Response:
    """What `respond` returns, or the status of the error it raises."""
    try:
        return respond()
    except Exception as error:  # noqa: BLE001 - every failure ends the call with a status
        await abort(context, error)


async def answer_on_thread(context: Context, threads: WaitingThreads, respond: Callable[[], Response]) -> Response:
    """`answer` for what may take long."""
    try:
        return await threads.run(respond)
    except Exception as error:  # noqa: BLE001 - every failure ends the call with a status
        await abort(context, error)
    finally:
        del context
