import logging
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from server.backends import onnx_session
from server.backends.onnx_backend import OnnxBackend
from server.core.errors import BackendDead, BackendFailed, InputsUnfit, LoadFailed
from server.core.tensors import NUMPY_DTYPES, Array
from tests.backends.conftest import Open, Save, model
from tests.onnx_types import ONNX_TYPES

FLOAT, INT64, STRING, BFLOAT16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BFLOAT16


def texts(*items: bytes) -> Array:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def values(datatype: str) -> Array:
    if datatype == "BYTES":
        return texts(b"", b"a\x00b", "é".encode(), b"1", b"2", b"3").reshape(3, 2)
    if datatype == "BF16":
        return np.array([[0x3F80, 0xBF80], [0x7FC1, 0x0001], [0x8000, 0x7F80]], dtype=np.uint16)
    if datatype == "BOOL":
        return np.array([[True, False], [False, False], [True, True]])
    return np.array([[0, 1], [2, 3], [100, 127]]).astype(NUMPY_DTYPES[datatype])


@pytest.mark.parametrize("datatype", list(NUMPY_DTYPES))
@pytest.mark.parametrize("shape", [["N", 2], ["N", "T"], []])
def test_every_datatype_and_rank_comes_back_as_it_was(save: Save, opened: Open, datatype: str, shape: list[str]) -> None:
    kind = ONNX_TYPES[datatype]
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", kind, shape)], [("y", kind, shape)])
    backend = opened()
    sent = values(datatype) if shape else values(datatype)[1, 1:].reshape(())
    sent.setflags(write=False)
    answer = backend.run({"x": sent})["y"]
    assert answer.dtype == NUMPY_DTYPES[datatype]
    assert answer.shape == sent.shape
    if datatype == "BYTES":
        assert answer.reshape(-1).tolist() == sent.reshape(-1).tolist()
    else:
        assert answer.tobytes() == sent.tobytes()
    assert backend.signature.max_batch == (64 if shape else 0)
    assert backend.signature.inputs[0].datatype == datatype


def test_a_model_says_what_it_is(linear: Path, opened: Open) -> None:
    backend = opened()
    assert (backend.platform, backend.device) == ("onnxruntime_onnx", "cpu")
    assert backend.memory_bytes() == linear.stat().st_size
    x = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
    np.testing.assert_array_equal(backend.run({"x": x})["y"], [[4, 5], [10, 11]])


def test_the_folder_may_vanish_after_loading(linear: Path, opened: Open) -> None:
    backend = opened()
    shutil.rmtree(linear.parent)
    assert backend.run({"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[2.0, 2.0]]


def test_outputs_belong_to_the_caller(linear: Path, opened: Open) -> None:
    backend = opened()
    first = backend.run({"x": np.ones((2, 3), np.float32)})["y"]
    backend.run({"x": np.zeros((2, 3), np.float32)})
    first += 1
    assert first.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_nan_just_computes(linear: Path, opened: Open) -> None:
    assert np.isnan(opened().run({"x": np.full((1, 3), np.nan, np.float32)})["y"]).all()


def test_several_inputs_outputs_and_free_dimensions(save: Save, opened: Open) -> None:
    save(
        [helper.make_node("Concat", ["a", "b"], ["joined"], axis=1), helper.make_node("Identity", ["c"], ["same"])],
        [("a", FLOAT, ["N", "S", "F"]), ("b", FLOAT, ["N", "T", "F"]), ("c", INT64, ["N"])],
        [("joined", FLOAT, ["N", "U", "F"]), ("same", INT64, ["N"])],
    )
    backend = opened()
    assert backend.signature.max_batch == 64
    answer = backend.run({"a": np.zeros((2, 1, 4), np.float32), "b": np.ones((2, 3, 4), np.float32), "c": np.array([5, 6])})
    assert answer["joined"].shape == (2, 4, 4)
    assert answer["same"].tolist() == [5, 6]


def test_a_model_without_inputs(save: Save, opened: Open) -> None:
    save([helper.make_node("Identity", ["w"], ["y"])], [], [("y", FLOAT, [2])], {"w": np.ones(2, np.float32)})
    assert opened().run({})["y"].tolist() == [1.0, 1.0]


def test_a_fixed_first_dimension_does_not_batch(save: Save, opened: Open) -> None:
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", FLOAT, [4, 2])], [("y", FLOAT, [4, 2])])
    backend = opened()
    assert (backend.signature.max_batch, backend.signature.inputs[0].shape) == (0, (4, 2))
    assert backend.run({"x": np.ones((4, 2), np.float32)})["y"].shape == (4, 2)
    with pytest.raises(LoadFailed, match="first dimension fixed at 4"):
        opened(max_batch=4)


def test_weights_that_are_graph_inputs_are_not_offered(save: Save, opened: Open) -> None:
    weights = {"w": np.ones((3, 1), np.float32)}
    save(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["N", 3]), ("w", FLOAT, [3, 1])],
        [("y", FLOAT, ["N", 1])],
        weights,
    )
    assert [spec.name for spec in opened().signature.inputs] == ["x"]


def test_bfloat16_beside_strings(save: Save, opened: Open) -> None:
    cast = [helper.make_node("Cast", ["x"], ["float"], to=FLOAT), helper.make_node("Cast", ["float"], ["text"], to=STRING)]
    same = helper.make_node("Identity", ["x"], ["y"])
    pattern = np.array([0x3F80, 0x4000], dtype=np.uint16)
    save([*cast, same], [("x", BFLOAT16, ["N"])], [("text", STRING, ["N"]), ("y", BFLOAT16, ["N"])])
    answer = opened().run({"x": pattern})
    assert (answer["text"].tolist(), answer["y"].tolist()) == ([b"1", b"2"], pattern.tolist())
    echo = helper.make_node("Identity", ["s"], ["t"])
    save([*cast, echo], [("x", BFLOAT16, ["N"]), ("s", STRING, ["N"])], [("text", STRING, ["N"]), ("t", STRING, ["N"])])
    answer = opened().run({"x": pattern, "s": texts(b"a", b"b")})
    assert (answer["text"].tolist(), answer["t"].tolist()) == ([b"1", b"2"], [b"a", b"b"])
    save([same, echo], [("x", BFLOAT16, ["N"]), ("s", STRING, ["N"])], [("y", BFLOAT16, ["N"]), ("t", STRING, ["N"])])
    with pytest.raises(LoadFailed, match="BYTES inputs and BF16 outputs"):
        opened()


@pytest.fixture
def table(save: Save) -> Path:
    return save(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [("i", INT64, ["N"])],
        [("y", FLOAT, ["N"])],
        {"table": np.arange(4, dtype=np.float32)},
    )


def test_one_failed_batch_leaves_the_next_alone(table: Path, opened: Open, capfd: pytest.CaptureFixture[str]) -> None:
    backend = opened()
    with pytest.raises(BackendFailed) as caught:
        backend.run({"i": np.array([1, 9])})
    assert not isinstance(caught.value, BackendDead)
    assert str(caught.value).startswith("executing model 'm' failed: Non-zero status code returned while running Gather node.")
    assert "idx=9" in str(caught.value)
    assert backend.run({"i": np.array([3])})["y"].tolist() == [3.0]
    assert capfd.readouterr() == ("", "")


def test_bytes_that_are_not_text_fail_by_name(save: Save, opened: Open) -> None:
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", STRING, ["N"])], [("y", STRING, ["N"])])
    with pytest.raises(InputsUnfit, match="input 'x' holds bytes that are not UTF-8"):
        opened().run({"x": texts(b"\xff")})


def test_a_bound_run_that_fails_lets_go_of_its_inputs(save: Save, opened: Open) -> None:
    save([helper.make_node("Identity", ["x"], ["y"])], [("x", BFLOAT16, ["N", 2])], [("y", BFLOAT16, ["N", 2])])
    backend = opened()
    with pytest.raises(BackendFailed, match="Got invalid dimensions for input: x"):
        backend.run({"x": np.zeros((1, 5), np.uint16)})
    assert backend.run({"x": np.ones((1, 2), np.uint16)})["y"].tolist() == [[1, 1]]


def test_a_dead_device_is_told_from_a_bad_batch(linear: Path, opened: Open) -> None:
    backend = opened()

    class Session:
        def run(self, names: list[str], feed: dict[str, Array], options: object) -> list[Array]:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=a")

    backend._session = Session()
    with pytest.raises(BackendDead) as caught:
        backend.run({"x": np.ones((1, 3), np.float32)})
    assert str(caught.value) == "executing model 'm' failed: CUDA failure 700: an illegal memory access was encountered"


def test_rows_that_do_not_come_back_are_a_failure(save: Save, opened: Open) -> None:
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)]
    save(nodes, [("x", FLOAT, ["N", 1])], [("y", FLOAT, ["M", 1])])
    with pytest.raises(BackendFailed, match=r"output 'y' of model 'm' has shape \[4, 1\] for 2 rows"):
        opened(max_batch=8).run({"x": np.ones((2, 1), np.float32)})
    assert opened().signature.max_batch == 0


def test_mixing_rows_turns_batching_off(save: Save, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    save([helper.make_node("Softmax", ["x"], ["y"], axis=0)], [("x", FLOAT, ["N", 3])], [("y", FLOAT, ["N", 3])])
    with caplog.at_level(logging.WARNING, logger="podium.backends"):
        backend = opened()
    assert backend.signature.max_batch == 0
    assert backend.signature.inputs[0].shape == (-1, 3)
    assert caplog.messages == [
        "m:1 is served without batching: output 'y' of a row depends on the other rows of its batch;"
        " max_batch in model.toml overrides this"
    ]
    assert opened(max_batch=4).signature.max_batch == 4


MIXING = {
    "mean over the batch": [
        helper.make_node("ReduceMean", ["x", "zero"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ],
    "recurrence over the first dimension": [helper.make_node("CumSum", ["x", "first"], ["y"])],
    "normalisation in training mode": [
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "mean", "var"], training_mode=1)
    ],
    "a scale taken from the whole tensor": [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "point"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "point"], ["y"]),
    ],
}


@pytest.mark.parametrize("mixing", MIXING)
def test_what_exporters_leave_behind_is_found(save: Save, opened: Open, mixing: str) -> None:
    weights = {
        "zero": np.array([0], dtype=np.int64),
        "first": np.array(0, dtype=np.int64),
        **{name: np.ones(3, np.float32) for name in "sbmv"},
    }
    used = {name for node in MIXING[mixing] for name in node.input}
    save(
        MIXING[mixing],
        [("x", FLOAT, ["N", 3])],
        [("y", FLOAT, ["N", 3])],
        {name: array for name, array in weights.items() if name in used},
    )
    assert opened().signature.max_batch == 0


def test_rows_of_a_convolution_are_independent(save: Save, opened: Open) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["h"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["y"], axis=1),
    ]
    weights = {"w": np.random.default_rng(0).standard_normal((10, 3, 7, 7)).astype(np.float32)}
    save(nodes, [("x", FLOAT, ["N", 3, "H", "W"])], [("y", FLOAT, ["N", 10])], weights)
    backend = opened()
    assert (backend.signature.max_batch, backend.signature.inputs[0].shape) == (64, (3, -1, -1))


def test_a_device_that_dies_in_the_probe_fails_the_load(linear: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(self: OnnxBackend, feed: dict[str, Array]) -> dict[str, Array]:
        raise RuntimeError("cudaErrorIllegalAddress")

    monkeypatch.setattr(OnnxBackend, "_run_plain", dies)
    with pytest.raises(LoadFailed, match="cudaErrorIllegalAddress"):
        opened()


def test_external_data_is_read_beside_the_file(folder: Path, opened: Open) -> None:
    weights = {"w": np.arange(768, dtype=np.float32).reshape(3, 256)}
    graph = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", FLOAT, ["N", 3])], [("y", FLOAT, ["N", 256])], weights
    )
    onnx.save_model(graph, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=16)
    backend = opened()
    assert backend.memory_bytes() > 3072
    np.testing.assert_array_equal(backend.run({"x": np.eye(3, dtype=np.float32)[:1]})["y"], weights["w"][:1])
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(100)
    check_failure(folder, opened, "out of bounds")
    (folder / "weights.bin").unlink()
    check_failure(folder, opened, "weights.bin")


def check_failure(folder: Path, opened: Open, reason: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        opened()
    text = str(caught.value)
    assert text.startswith("model.onnx")
    assert reason in text
    assert str(folder) not in text
    assert "onnxruntime_src" not in text


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, None])
def test_a_file_that_is_no_model(linear: Path, opened: Open, content: bytes | None) -> None:
    linear.write_bytes(linear.read_bytes()[:60] if content is None else content)
    check_failure(linear.parent, opened, "protobuf" if content == b"" else "Protobuf parsing failed")


def test_a_missing_file(folder: Path, opened: Open) -> None:
    check_failure(folder, opened, "missing")


def test_what_onnxruntime_does_not_know(linear: Path, opened: Open) -> None:
    graph = onnx.load(linear)
    graph.opset_import[0].version = 999
    linear.write_bytes(graph.SerializeToString())
    check_failure(linear.parent, opened, "Opset 999")
    graph.opset_import[0].version = 18
    graph.graph.node[0].op_type = "Nope"
    linear.write_bytes(graph.SerializeToString())
    check_failure(linear.parent, opened, "No Op registered for Nope")


def test_sequences_cannot_be_served(save: Save, opened: Open, folder: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("SplitToSequence", ["x"], ["y"], axis=0)],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, ["N"])],
        [helper.make_tensor_sequence_value_info("y", FLOAT, None)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(LoadFailed, match=r"output 'y' of model.onnx is a seq\(tensor\(float\)\)"):
        opened()


def test_a_provider_that_is_not_there_is_an_error(linear: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(LoadFailed) as caught:
        opened(onnx={"providers": ["cuda", "cpu"]})
    assert str(caught.value) == "provider 'cuda' is not in this build of onnxruntime, which has CPUExecutionProvider"


def test_a_provider_that_does_not_start_is_an_error(linear: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    # onnxruntime would only warn, and execute on the CPU
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnx_session, "find_library", lambda: None)
    preloads: list[bool] = []
    monkeypatch.setattr(ort, "preload_dlls", lambda: preloads.append(True))
    real = ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda path, options, providers, **rest: real(path, options, ["CPUExecutionProvider"])
    )
    with pytest.raises(LoadFailed, match="CUDAExecutionProvider could not be started on this machine; started: CPU"):
        opened(onnx={"providers": ["cuda"]})
    assert preloads == [True]  # a second attempt, with the libraries of this environment, and no third one


def test_session_options_are_those_of_the_settings(linear: Path, opened: Open) -> None:
    backend = opened(onnx={"intra_op_threads": 2, "graph_optimization": "basic", "providers": ["cpu", "cpu"]})
    options = backend._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC


CYCLES = """
import sys, threading
from pathlib import Path
import numpy as np, psutil
from server.backends.base import LoadTask
from server.backends.onnx_session import open_backend
from server.core.settings import ModelSettings
from server.core.versions import VersionKey

task = LoadTask(VersionKey("m", 1), Path(sys.argv[1]), ModelSettings())

def cycle():
    backend = open_backend(task)
    x = np.ones((64, 256), np.float32)
    engine = threading.Thread(target=lambda: [backend.run({"x": x[:rows]}) for rows in (1, 8, 64)])
    engine.start()
    engine.join()
    backend.close()

process = psutil.Process()
for count in range(int(sys.argv[2])):
    cycle()
    print(process.memory_info().rss)
"""


def test_unloading_gives_memory_back(folder: Path, save: Save) -> None:
    """60 times a 20 MB model: after the first 20, memory neither grows nor wanders by a quarter of the model."""
    sizes = [256, 1500, 1500, 1500, 256]
    weights = {f"w{layer}": np.full(shape, 0.01, np.float32) for layer, shape in enumerate(pairwise(sizes))}
    names = ["x", "h0", "h1", "h2", "y"]
    nodes = [helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]]) for layer in range(4)]
    save(nodes, [("x", FLOAT, ["N", 256])], [("y", FLOAT, ["N", 256])], weights)
    root = str(Path(onnx_session.__file__).parents[2])
    command = [sys.executable, "-c", CYCLES, str(folder), "60"]
    printed = subprocess.run(command, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True)
    settled = np.array([int(line) for line in printed.stdout.split()][20:])
    assert len(settled) == 40
    assert settled.max() - settled.min() < 5 * 2**20


def test_closing_does_without_glibc(linear: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.backends.memory._malloc_trim", None)
    backend = opened()
    backend.close()
    assert backend._session is None
