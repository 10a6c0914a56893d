"""What ONNX Runtime's execution providers are told, in their own words. **Pure.** Floor 2, beside its one user.

Never reads a file and knows no session: options come from settings, a signature and the batch sizes that will be warmed.
"""

from collections.abc import Mapping, Sequence

from server.core.settings import OnnxSettings
from server.core.signature import Signature
from server.core.tensors import TensorSpec

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
GRAPH_ID = "gpu_graph_id"
"""The run option that names a captured graph."""
NO_GRAPH = -1
"""Of `GRAPH_ID`: execute, neither capturing nor replaying."""

_ARENA = {"same_as_requested": "kSameAsRequested", "next_power_of_two": "kNextPowerOfTwo"}


def executes_on(settings: OnnxSettings) -> str:
    """The first provider, which takes all that it can."""
    return (*settings.providers, "cpu")[0]


def provider_options(
    name: str,
    settings: OnnxSettings,
    *,
    stream: int = 0,
    graphs: bool = False,
    profiles: Mapping[str, str] | None = None,
    engines: str = "",
) -> dict[str, str]:
    """The options of one provider.

    `stream`: the CUDA stream to compute on, 0 for one of the provider's own. `graphs`: executions may be captured. `profiles`:
    see `profiles`. `engines`: the folder in which TensorRT keeps what it built for this very file, "" for none.
    """
    if name == "cpu":
        return {}
    options = {"device_id": str(settings.device_id)}
    if stream:
        options["user_compute_stream"] = str(stream)
    return options | (_cuda(settings, graphs) if name == "cuda" else _tensorrt(settings, profiles or {}, engines))


def _cuda(settings: OnnxSettings, graphs: bool) -> dict[str, str]:
    options = {
        # by default it grows by what is asked for, not by doubling: several versions share the device
        "arena_extend_strategy": _ARENA[settings.arena_extend],
        "cudnn_conv_algo_search": settings.cudnn_conv_search.upper(),
    }
    if settings.gpu_memory_limit_bytes:
        options["gpu_mem_limit"] = str(settings.gpu_memory_limit_bytes)
    if graphs:
        options["enable_cuda_graph"] = "1"
    return options


def _tensorrt(settings: OnnxSettings, profiles: Mapping[str, str], engines: str) -> dict[str, str]:
    options = dict(profiles)
    if settings.tensorrt_precision != "fp32":
        options[f"trt_{settings.tensorrt_precision}_enable"] = "1"
    if settings.tensorrt_workspace_bytes:
        options["trt_max_workspace_size"] = str(settings.tensorrt_workspace_bytes)
    if engines:
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": engines}
    if settings.tensorrt_cache:
        # how long kernels take depends on the device, not on the model: all versions share it
        options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": settings.tensorrt_cache}
    return options


def profiles(signature: Signature, buckets: Sequence[int]) -> dict[str, str]:
    """The sizes that TensorRT builds for, so that one engine serves every batch; {} where they are not known before the load.

    Tuned for the largest batch: that is what executes when there is much to do.
    """
    names = [spec.name for spec in signature.inputs]
    if not signature.max_batch or any(-1 in spec.shape for spec in signature.inputs):
        return {}
    if any(mark in name for name in names for mark in ":,"):
        return {}  # TensorRT's own separators

    def shapes(rows: int) -> str:
        return ",".join(f"{spec.name}:{'x'.join(map(str, (rows, *spec.shape)))}" for spec in signature.inputs)

    largest = shapes(buckets[-1])
    return {
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": largest,
        "trt_profile_max_shapes": largest,
    }


def graph_obstacle(signature: Signature, settings: OnnxSettings) -> str:
    """Why executions cannot be captured as CUDA graphs, "" where they may be: a graph has its sizes and addresses for good."""
    if not settings.cuda_graphs:
        return "cuda_graphs is off"
    if executes_on(settings) != "cuda":
        return f"the provider {executes_on(settings)} executes, not cuda"
    if not signature.max_batch and not signature.inputs:
        return "there is no input"
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if -1 in spec.shape:
                return f"{kind} '{spec.name}' has free dimensions"
    return ""


def host_tensor(signature: Signature) -> str:
    """The first tensor that no device can hold, "" without one: strings lie in host memory."""
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if spec.datatype == "BYTES":
                return f"{kind} '{spec.name}' is BYTES"
    return ""


def run_entries(settings: OnnxSettings, graph_id: int, *, graphs: bool) -> dict[str, str]:
    """The configuration entries of one execution. `graphs`: its session may capture."""
    entries = {GRAPH_ID: str(graph_id)} if graphs else {}
    if settings.arena_shrinkage:
        entries["memory.enable_memory_arena_shrinkage"] = f"gpu:{settings.device_id}"
    return entries


def fixed_shape(spec: TensorSpec, rows: int) -> tuple[int, ...] | None:
    """A tensor's full shape before anything was executed, None where it is not known. `rows` 0: of a model without batching."""
    if -1 in spec.shape:
        return None
    return (rows, *spec.shape) if rows else spec.shape
