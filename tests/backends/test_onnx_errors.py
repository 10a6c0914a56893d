from pathlib import Path

import pytest

from server.backends.onnx_errors import is_fatal, reason

FOLDER = Path("/srv/models/m/1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from /srv/models/m/1/model.onnx failed:"
            "Protobuf parsing failed.",
            "Protobuf parsing failed.",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from /srv/models/m/1/model.onnx failed:"
            "/onnxruntime_src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const"
            " onnxruntime::ModelOptions&) Unsupported model IR version: 99, max supported IR version: 13\n",
            "Unsupported model IR version: 99, max supported IR version: 13",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Exception: /onnxruntime_src/core/initializer.cc:51 onnxruntime::Initializer"
            "(const onnx::TensorProto&, const std::filesystem::path&) [ONNXRuntimeError] : 1 : FAIL :"
            " tensorprotoutils.cc:1876 GetExtData External initializer: b1 is out of bounds",
            "Exception: External initializer: b1 is out of bounds",
        ),
        (
            'path escapes: "/etc/passwd" allowed directory: "/srv/models/m/1"',
            'path escapes: "passwd" allowed directory: "the version\'s folder"',
        ),
        ("running Gather node. Name:'/layer1/Gather' Status", "running Gather node. Name:'/layer1/Gather' Status"),
        (
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=gpu-7 ; file=/src/a.cc ; line=9",
            "CUDA failure 700: an illegal memory access was encountered",
        ),
        ("\n\n second \n third", "second"),
        ("", "onnxruntime gave no reason"),
    ],
)
def test_a_reason_is_one_line_without_places(text: str, expected: str) -> None:
    assert reason(text, FOLDER) == expected


def test_a_reason_is_bounded() -> None:
    assert len(reason("x" * 10_000, FOLDER)) == 500


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error 719: unspecified launch failure",
        "CUDA failure 700: an illegal memory access was encountered",
        "cudaErrorLaunchFailure",
        "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED",
        "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED",
        "the device-lost error",
        "GPU is lost",
    ],
)
def test_device_errors_are_fatal(text: str) -> None:
    assert is_fatal(text)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA failure 2: out of memory",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_NOT_SUPPORTED",
        "CUDA failure 9: invalid configuration argument",
        "indices element out of data bounds",
        "Failed to allocate memory for requested buffer of size 5",
    ],
)
def test_what_the_next_call_survives_is_not(text: str) -> None:
    assert not is_fatal(text)
