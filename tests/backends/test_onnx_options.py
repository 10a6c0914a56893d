import pytest
from pydantic import ValidationError

from server.backends.onnx_options import (
    NO_GRAPH,
    executes_on,
    fixed_shape,
    graph_obstacle,
    host_tensor,
    profiles,
    provider_options,
    run_entries,
)
from server.core.settings import OnnxSettings
from server.core.signature import Signature
from server.core.tensors import TensorSpec

PLAIN = TensorSpec("y", "FP32", (2,))


def signature(*inputs: TensorSpec, max_batch: int = 8, output: TensorSpec = PLAIN) -> Signature:
    return Signature("m", inputs or (TensorSpec("x", "FP32", (3,)),), (output,), max_batch)


def test_the_first_provider_executes() -> None:
    assert (executes_on(OnnxSettings()), executes_on(OnnxSettings(providers=("tensorrt", "cuda")))) == ("cpu", "tensorrt")


def test_the_cpu_has_no_options() -> None:
    assert provider_options("cpu", OnnxSettings(providers=("cuda",), cuda_graphs=True), stream=5, graphs=True) == {}


def test_cuda() -> None:
    assert provider_options("cuda", OnnxSettings()) == {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
    }
    settings = OnnxSettings(
        device_id=1, gpu_memory_limit_bytes=2**30, arena_extend="next_power_of_two", cudnn_conv_search="heuristic"
    )
    assert provider_options("cuda", settings, stream=77, graphs=True) == {
        "device_id": "1",
        "user_compute_stream": "77",
        "arena_extend_strategy": "kNextPowerOfTwo",
        "cudnn_conv_algo_search": "HEURISTIC",
        "gpu_mem_limit": str(2**30),
        "enable_cuda_graph": "1",
    }


def test_tensorrt() -> None:
    assert provider_options("tensorrt", OnnxSettings(device_id=1)) == {"device_id": "1"}
    settings = OnnxSettings(tensorrt_precision="bf16", tensorrt_workspace_bytes=7, tensorrt_cache="/cache")
    options = provider_options("tensorrt", settings, stream=77, profiles=profiles(signature(), (1, 4, 8)), engines="/cache/abc")
    assert options == {
        "device_id": "0",
        "user_compute_stream": "77",
        "trt_bf16_enable": "1",
        "trt_max_workspace_size": "7",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache/abc",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/cache",
        "trt_profile_min_shapes": "x:1x3",
        "trt_profile_opt_shapes": "x:8x3",
        "trt_profile_max_shapes": "x:8x3",
    }


def test_profiles_name_every_input() -> None:
    two = signature(TensorSpec("image", "FP32", (3, 4, 4)), TensorSpec("scale", "FP32", ()), max_batch=16)
    assert profiles(two, (1, 16))["trt_profile_max_shapes"] == "image:16x3x4x4,scale:16"


@pytest.mark.parametrize(
    "unknown",
    [
        signature(max_batch=0),
        signature(TensorSpec("x", "FP32", (3,)), TensorSpec("t", "INT64", (-1,))),
        signature(TensorSpec("x:0", "FP32", (3,))),
        signature(TensorSpec("a,b", "FP32", (3,))),
    ],
)
def test_no_profile_without_known_sizes(unknown: Signature) -> None:
    assert profiles(unknown, (1, 8)) == {}


@pytest.mark.parametrize(
    ("settings", "given", "why"),
    [
        (OnnxSettings(providers=("cuda",)), signature(), "cuda_graphs is off"),
        (OnnxSettings(cuda_graphs=True), signature(), "the provider cpu executes, not cuda"),
        (OnnxSettings(providers=("tensorrt",), cuda_graphs=True), signature(), "the provider tensorrt executes, not cuda"),
        (
            OnnxSettings(providers=("cuda",), cuda_graphs=True),
            signature(TensorSpec("x", "FP32", (-1,))),
            "input 'x' has free dimensions",
        ),
        (
            OnnxSettings(providers=("cuda",), cuda_graphs=True),
            signature(output=TensorSpec("y", "FP32", (2, -1))),
            "output 'y' has free dimensions",
        ),
        (OnnxSettings(providers=("cuda",), cuda_graphs=True), Signature("m", (), (), 0), "there is no input"),
        (OnnxSettings(providers=("cuda",), cuda_graphs=True), signature(), ""),
        (OnnxSettings(providers=("cuda",), cuda_graphs=True), signature(max_batch=0), ""),
    ],
)
def test_why_nothing_is_captured(settings: OnnxSettings, given: Signature, why: str) -> None:
    assert graph_obstacle(given, settings) == why


def test_strings_lie_in_host_memory() -> None:
    assert host_tensor(signature(TensorSpec("s", "BYTES", (1,)))) == "input 's' is BYTES"
    assert host_tensor(signature(output=TensorSpec("t", "BYTES", (1,)))) == "output 't' is BYTES"
    assert host_tensor(signature(TensorSpec("x", "BF16", (1,)))) == ""


def test_entries_of_one_execution() -> None:
    assert run_entries(OnnxSettings(), NO_GRAPH, graphs=False) == {}
    assert run_entries(OnnxSettings(), NO_GRAPH, graphs=True) == {"gpu_graph_id": "-1"}
    assert run_entries(OnnxSettings(), 3, graphs=True) == {"gpu_graph_id": "3"}
    shrinking = OnnxSettings(arena_shrinkage=True, device_id=2)
    assert run_entries(shrinking, NO_GRAPH, graphs=False) == {"memory.enable_memory_arena_shrinkage": "gpu:2"}


def test_captured_graphs_keep_their_memory() -> None:
    with pytest.raises(ValidationError, match="arena_shrinkage gives memory away that captured CUDA graphs"):
        OnnxSettings(cuda_graphs=True, arena_shrinkage=True)


def test_shapes_known_beforehand() -> None:
    assert fixed_shape(TensorSpec("x", "FP32", (3,)), 4) == (4, 3)
    assert fixed_shape(TensorSpec("x", "FP32", (3,)), 0) == (3,)
    assert fixed_shape(TensorSpec("x", "FP32", (3, -1)), 4) is None
