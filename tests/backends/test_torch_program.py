import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from server.backends import torch_bound
from server.backends.base import LoadTask
from server.backends.pt2_archive import OWN, PROGRAM, WEIGHTS_CONFIG
from server.backends.pt2_signature import DATATYPES
from server.backends.torch_program import open_backend
from server.core.errors import BackendDead, BackendFailed, InputsUnfit, LoadFailed
from server.core.settings import ModelSettings
from server.core.tensors import NUMPY_DTYPES, Array, TensorSpec
from server.core.versions import VersionKey
from tests.backends.programs import ROWS, Small, changed, exported, json_change, small

DYNAMIC = torch.export.Dim.DYNAMIC
Open = Callable[..., Any]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def opened(folder: Path) -> Open:
    """Open a program's bytes with settings given as keywords."""

    def opened(content: bytes, **settings: object) -> Any:
        (folder / "program.pt2").write_bytes(content)
        return open_backend(LoadTask(VersionKey("m", 1), folder, ModelSettings.model_validate(settings)))

    return opened


class Function(nn.Module):  # type: ignore[misc]  # torch is untyped here (pyproject: follow_imports)
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def program(function: Callable[..., Any], example: Any = None, dim: Any = DYNAMIC, **extra: Any) -> bytes:
    example = torch.zeros((4, 3)) if example is None else example
    return exported(Function(function), (example,), ({0: dim},) if dim is not None else None, **extra)


def test_a_bare_program_is_served_with_what_it_says(opened: Open) -> None:
    backend = opened(small())
    assert backend.signature.inputs == (TensorSpec("codes", "INT64", (1,)), TensorSpec("numbers", "FP32", (2,)))
    assert backend.signature.outputs == (TensorSpec("sigmoid", "FP32", (3,)),)
    assert backend.signature.max_batch == 64
    assert (backend.platform, backend.device) == ("pytorch_libtorch", "cpu")
    assert backend.memory_bytes() == 4 * (40 + 18 + 3 + 1)
    codes, numbers = np.arange(8).reshape(8, 1), np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)
    with torch.inference_mode():
        expected = Small()(torch.tensor(codes), torch.tensor(numbers)).numpy()
    got = backend.run({"codes": codes, "numbers": numbers})["sigmoid"]
    assert np.array_equal(got, expected)
    assert got.flags.writeable
    backend.close()


def test_read_only_and_strided_arrays_are_taken_as_they_come(opened: Open) -> None:
    backend = opened(program(lambda _, x: x + 1))
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    frozen = np.frombuffer(x.tobytes(), np.float32).reshape(4, 3)
    assert np.array_equal(backend.run({"x": frozen})[backend.signature.outputs[0].name], x + 1)
    wide = np.repeat(x, 2, axis=0)[::2]
    assert np.array_equal(backend.run({"x": wide})[backend.signature.outputs[0].name], x + 1)


def test_outputs_are_neither_the_callers_inputs_nor_the_weights(opened: Open) -> None:
    backend = opened(program(lambda self, x: (x.view(-1, 3), self.weight.view(3), x * 1), dim=None), max_batch=0)
    x = np.ones((4, 3), np.float32)
    first = list(backend.run({"x": x}).values())
    for array in first:
        np.add(array, 7, out=array, casting="unsafe")
    assert (x == 1).all()
    again = list(backend.run({"x": x}).values())
    assert again[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("datatype", [name for name in NUMPY_DTYPES if name != "BYTES"])
def test_every_datatype_comes_back_as_it_went_in(opened: Open, datatype: str) -> None:
    words = {wire: word for word, wire in DATATYPES.items()}
    dtype = getattr(torch, words[datatype])
    backend = opened(program(lambda _, x: x.clone(), torch.zeros((4, 3), dtype=dtype)))
    assert backend.signature.inputs[0].datatype == backend.signature.outputs[0].datatype == datatype
    x = np.array([[0, 1, 1]] * 2).astype(NUMPY_DTYPES[datatype])
    (y,) = backend.run({"x": x}).values()
    assert y.dtype == x.dtype
    assert np.array_equal(x, y)


def test_bfloat16_is_its_bit_pattern(opened: Open) -> None:
    backend = opened(program(lambda _, x: x * 2, torch.zeros((4, 3), dtype=torch.bfloat16)))
    (y,) = backend.run({"x": np.full((2, 3), 0x3F80, np.uint16)}).values()
    assert (y == 0x4000).all()


@pytest.mark.parametrize(
    ("dim", "settings", "max_batch"),
    [
        (ROWS, {}, 64),
        (torch.export.Dim("rows", max=16), {}, 16),
        (torch.export.Dim("rows", max=16), {"max_batch": 16}, 16),
        (torch.export.Dim("rows", min=4), {}, 0),
        (DYNAMIC, {"max_batch": 500}, 500),
        (DYNAMIC, {"max_batch": 0}, 0),
        (None, {}, 0),
    ],
)
def test_the_largest_batch_is_what_the_program_was_exported_for(
    opened: Open, dim: Any, settings: dict[str, Any], max_batch: int
) -> None:
    backend = opened(program(lambda _, x: x + 1, dim=dim), **settings)
    assert backend.signature.max_batch == max_batch
    assert backend.signature.inputs[0].shape == ((3,) if max_batch else (4, 3) if dim is None else (-1, 3))


def test_settings_that_ask_for_more_rows_than_the_program_takes_are_refused(opened: Open) -> None:
    for dim in (torch.export.Dim("rows", max=16), torch.export.Dim("rows", min=4)):
        with pytest.raises(LoadFailed, match=r"states max_batch = 32, but the program takes \d+ to \d+ rows"):
            opened(program(lambda _, x: x + 1, dim=dim), max_batch=32)


def test_rows_that_change_each_other_are_not_batched(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    backend = opened(program(lambda _, x: torch.softmax(x, 0)))
    assert backend.signature.max_batch == 0
    assert "depends on the other rows of its batch" in caplog.text
    assert opened(program(lambda _, x: torch.softmax(x, 0)), max_batch=8).signature.max_batch == 8


def test_free_dimensions_keep_to_their_range_and_to_each_other(opened: Open) -> None:
    class Pair(nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (x * y).sum(1)

    length = torch.export.Dim("length", min=3, max=10)
    shapes = ({0: DYNAMIC, 1: length}, {0: DYNAMIC, 1: length})
    backend = opened(exported(Pair(), (torch.ones(4, 5), torch.ones(4, 5)), shapes), max_batch=8)
    ones = {length: np.ones((2, length), np.float32) for length in (2, 6, 7, 11)}
    assert next(iter(backend.run({"x": ones[6], "y": ones[6]}).values())).tolist() == [6, 6]
    for length in (2, 11):
        with pytest.raises(BackendFailed, match=f"dimension 1 of input 'x' is {length}; the program takes 3 to 10"):
            backend.run({"x": ones[length], "y": ones[length]})
    with pytest.raises(InputsUnfit, match="dimension 1 of input 'y' is 7; others like it are 6"):
        backend.run({"x": ones[6], "y": ones[7]})


def test_names_and_vocabularies_of_the_file(opened: Open) -> None:
    own = {"inputs": ["word", "n"], "outputs": ["p"], "vocabularies": {"word": {"codes": {"a": 1, "b": 2}, "unknown": 0}}}
    backend = opened(small(podium=json.dumps(own)))
    assert backend.signature.inputs[0] == TensorSpec("word", "BYTES", (1,))
    plain = opened(small())
    numbers = np.zeros((3, 2), np.float32)
    words = np.array([[b"b"], [b"\xff"], [b"a"]], dtype=object)
    got = backend.run({"word": words, "n": numbers})["p"]
    assert np.array_equal(got, plain.run({"codes": np.array([[2], [0], [1]]), "numbers": numbers})["sigmoid"])
    with pytest.raises(LoadFailed, match=rf"program\.pt2: record '{OWN}' names 1 inputs; the program has 2"):
        opened(small(podium='{"inputs": ["x"]}'))
    with pytest.raises(LoadFailed, match="two outputs are called"):
        opened(program(lambda _, x: (y := x + 1, y)))


@pytest.mark.parametrize("decompose", [True, False])
def test_layers_answer_as_they_do_in_torch(opened: Open, decompose: bool) -> None:
    torch.manual_seed(3)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.Sequential(nn.Embedding(50, 16), encoder, nn.LSTM(16, 5, batch_first=True)).eval()
    ids = torch.randint(0, 50, (3, 7))
    content = exported(Function(lambda _, x: model(x)[0]), (ids,), ({0: DYNAMIC},), decompose=decompose)
    with torch.inference_mode():
        expected = model(ids)[0].numpy()
    got = next(iter(opened(content).run({"x": ids.numpy()}).values()))
    np.testing.assert_allclose(got.astype(np.float32), expected, rtol=1e-5, atol=1e-6)


def test_sizes_are_computed_with(opened: Open) -> None:
    def function(_: Any, x: torch.Tensor) -> Any:
        first, second, third = x.split(1, dim=1)
        top = torch.topk(x, 2)[0]
        return torch.cat([first + third, top], 1) * (x.shape[0] * 2 - 1), x.new_zeros(x.shape[0], 2), second

    backend = opened(program(function), max_batch=8)
    x = np.array([[1, 2, 3], [6, 5, 4]], np.float32)
    scaled, zeros, second = backend.run({"x": x}).values()
    assert scaled.tolist() == [[12, 9, 6], [30, 18, 15]]
    assert zeros.shape == (2, 2)
    assert second.tolist() == [[2], [5]]


def test_operators_that_write_in_place_are_refused_with_the_way_out(opened: Open) -> None:
    content = program(lambda _, x: x.clone().relu_(), decompose=False)
    with pytest.raises(LoadFailed, match=r"relu_\.default\): this operator is not among .*run_decompositions"):
        opened(content)
    assert opened(program(lambda _, x: x.clone().relu_())).signature.max_batch == 64


def test_a_failing_batch_says_why_and_names_no_path(opened: Open, folder: Path) -> None:
    backend = opened(small())
    with pytest.raises(BackendFailed, match=r"executing model 'm' failed: .*index out of range") as caught:
        backend.run({"codes": np.full((2, 1), 99), "numbers": np.zeros((2, 2), np.float32)})
    assert not isinstance(caught.value, BackendDead)
    assert str(folder) not in str(caught.value)
    assert "/" not in str(caught.value)


def test_errors_of_a_lost_device_are_fatal(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(small())

    def lost(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    monkeypatch.setattr(torch_bound, "_step", lost)
    with pytest.raises(BackendDead, match=r"an illegal memory access was encountered$"):
        backend.run({"codes": np.zeros((1, 1), np.int64), "numbers": np.zeros((1, 2), np.float32)})


def _change(record: str, change: Callable[[Any], None]) -> bytes:
    return changed(small(), json_change(record, change))


def test_files_that_contradict_themselves_are_refused_or_fail_their_batches(opened: Open) -> None:
    def longer(parsed: Any) -> None:
        parsed["config"]["table"]["tensor_meta"]["sizes"][0] = {"as_int": 11}

    def repeated(parsed: Any) -> None:
        parsed["config"]["table"]["tensor_meta"] |= {"sizes": [{"as_int": 10**12}], "strides": [{"as_int": 0}]}

    for change in (longer, repeated):
        with pytest.raises(LoadFailed, match=r"record 'data/weights/weight_0' has 160 bytes, too few"):
            opened(_change(WEIGHTS_CONFIG, change))
    with pytest.raises(LoadFailed, match="the weight 'table' is not stored"):
        opened(_change(WEIGHTS_CONFIG, lambda parsed: parsed["config"].pop("table")))

    def other_type(parsed: Any) -> None:
        parsed["graph_module"]["graph"]["tensor_values"]["sigmoid"]["dtype"] = 8

    inputs: dict[str, Array] = {"codes": np.zeros((1, 1), np.int64), "numbers": np.zeros((1, 2), np.float32)}
    with pytest.raises(BackendFailed, match="output 'sigmoid' is float32, which the file does not say"):
        opened(_change(PROGRAM, other_type)).run(inputs)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("torch.ops.aten.cat.nonsense", "has no operator aten.cat.nonsense"),
        ("torch.ops.aten.sigmoid.out", "aten.sigmoid.out writes into its arguments"),
        ("torch.ops.aten.where.self", "aten.where.self takes condition, self, other, in this order"),
    ],
)
def test_operators_that_are_not_what_the_file_takes_them_for(opened: Open, target: str, text: str) -> None:
    def change(parsed: Any) -> None:
        parsed["graph_module"]["graph"]["nodes"][-1]["target"] = target

    with pytest.raises(LoadFailed) as caught:
        opened(_change(PROGRAM, change))
    assert text in str(caught.value)


def test_a_tensor_is_no_number(opened: Open) -> None:
    def change(parsed: Any) -> None:
        node = parsed["graph_module"]["graph"]["nodes"][-1]
        node["outputs"] = [{"as_sym_int": {"as_name": "lie"}}]
        output = parsed["graph_module"]["signature"]["output_specs"][0]["user_output"]["arg"]["as_tensor"]
        output["name"] = node["inputs"][0]["arg"]["as_tensor"]["name"]

    inputs: dict[str, Array] = {"codes": np.zeros((1, 1), np.int64), "numbers": np.zeros((1, 2), np.float32)}
    with pytest.raises(BackendFailed, match="the program takes a tensor for a number"):
        opened(_change(PROGRAM, change)).run(inputs)


def test_rows_are_counted(opened: Open) -> None:
    backend = opened(program(lambda _, x: x.view(-1)), max_batch=8)
    with pytest.raises(BackendFailed, match=r"has shape \[6\] for 2 rows"):
        backend.run({"x": np.zeros((2, 3), np.float32)})


def test_threads_are_those_of_the_version_that_runs(opened: Open) -> None:
    one, two = (opened(small(), torch={"intra_op_threads": count}) for count in (1, 2))
    inputs: dict[str, Array] = {"codes": np.zeros((1, 1), np.int64), "numbers": np.zeros((1, 2), np.float32)}
    for backend, count in ((one, 1), (two, 2), (one, 1)):
        backend.run(inputs)
        assert torch.get_num_threads() == count


def test_a_device_that_is_not_there(opened: Open) -> None:
    with pytest.raises(LoadFailed, match=r"cuda:99 is not there: torch .* sees \d+"):
        opened(small(), torch={"device": "cuda", "device_id": 99})


@pytest.mark.gpu
def test_a_program_of_the_cpu_runs_on_a_gpu(opened: Open) -> None:
    content = program(lambda _, x: x + torch.arange(3, device=x.device) + torch.full((3,), 2.0))
    backend = opened(content, torch={"device": "cuda"})
    assert backend.device == "cuda:0"
    (y,) = backend.run({"x": np.zeros((2, 3), np.float32)}).values()
    assert y.tolist() == [[2, 3, 4]] * 2
    backend.close()


def test_a_server_without_torch_models_does_not_import_torch() -> None:
    code = "import sys, server.app, server.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60, check=False).returncode == 0


def test_nothing_warns(opened: Open) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend = opened(small())
        frozen = np.zeros((1, 2), np.float32)
        frozen.flags.writeable = False
        backend.run({"codes": np.zeros((1, 1), np.int64), "numbers": frozen})


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("fp16", 2e-3)])
def test_another_precision_stands_in_for_fp32_and_clients_do_not_see_it(opened: Open, precision: str, tolerance: float) -> None:
    exact, rounded = opened(small()), opened(small(), torch={"precision": precision})
    assert rounded.signature == exact.signature
    assert rounded.memory_bytes() == exact.memory_bytes() / 2
    inputs = {"codes": np.arange(8).reshape(8, 1), "numbers": np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)}
    expected, got = exact.run(inputs)["sigmoid"], rounded.run(inputs)["sigmoid"]
    assert got.dtype == np.float32
    assert not np.array_equal(got, expected)
    assert np.allclose(got, expected, atol=tolerance)


def test_a_type_that_the_program_names_is_rounded_too(opened: Open) -> None:
    content = program(lambda self, x: torch.nn.functional.linear(x.to(torch.float32), self.weight.reshape(1, 3)))
    (got,) = opened(content, max_batch=8, torch={"precision": "bf16"}).run({"x": np.ones((2, 3), np.float32)}).values()
    assert got.tolist() == [[3.0], [3.0]]


class Image(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 5 * 3 * 3 * 3).reshape(5, 3, 3, 3))

    def forward(self, x: torch.Tensor) -> Any:
        return torch.nn.functional.conv2d(x.to(torch.float32) / 255, self.weight, padding=1).relu()


def image() -> bytes:
    return exported(Image(), (torch.zeros((2, 3, 8, 8), dtype=torch.uint8),), ({0: DYNAMIC},))


@pytest.mark.parametrize("precision", ["as_saved", "bf16"])
def test_channels_may_be_last_in_memory(opened: Open, precision: str) -> None:
    settings = {"precision": precision, "channels_last": True}
    plain, last = opened(image(), max_batch=8), opened(image(), max_batch=8, torch=settings)
    weights = next(tensor for tensor in last._model.weights.values() if tensor.dim() == 4)
    assert weights.is_contiguous(memory_format=torch.channels_last)
    x = np.random.default_rng(1).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    (expected,), (got,) = plain.run({"x": x}).values(), last.run({"x": x}).values()
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert np.allclose(got, expected, atol=1e-5 if precision == "as_saved" else 0.15)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own compiler uses it
def test_a_program_is_compiled_for_the_batches_it_is_prepared_for(opened: Open) -> None:
    plain, compiled = opened(small(), max_batch=4), opened(small(), max_batch=4, torch={"compile": "default"})
    compiled.prepare((1, 4))
    assert compiled.notes() == ("compiled for batches of 1, 4",)
    for rows in (1, 2, 4):
        inputs = {"codes": np.arange(rows).reshape(rows, 1), "numbers": np.ones((rows, 2), np.float32)}
        assert np.allclose(plain.run(inputs)["sigmoid"], compiled.run(inputs)["sigmoid"], rtol=1e-5)
    plain.prepare((1, 4))
    assert plain.notes() == ()


def test_a_program_that_cannot_be_compiled_runs_step_by_step_and_says_so(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(small(), max_batch=4, torch={"compile": "max_autotune"})

    def refuses(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(torch, "compile", refuses)
    backend.prepare((1, 4))
    assert backend.notes() == ("not compiled: no kernel",)
    inputs = {"codes": np.zeros((1, 1), np.int64), "numbers": np.ones((1, 2), np.float32)}
    assert np.array_equal(backend.run(inputs)["sigmoid"], opened(small()).run(inputs)["sigmoid"])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own compiler uses it
@pytest.mark.parametrize(
    ("function", "example"),
    [
        (lambda _, x: torch.cat(torch.split(x, [1, 2], dim=1)[::-1], dim=1), torch.zeros((4, 3))),
        (lambda _, x: torch.stack(torch.topk(x, 2, dim=1)).float().sum(0), torch.zeros((4, 3))),
        (lambda _, x: x.expand(x.shape[0], 3) * x.shape[0], torch.zeros((4, 3))),
    ],
    ids=["lists", "tuples", "sizes"],
)
def test_every_kind_of_step_compiles(opened: Open, function: Callable[..., Any], example: Any) -> None:
    content = program(function, example)
    plain, compiled = opened(content, max_batch=4), opened(content, max_batch=4, torch={"compile": "default"})
    compiled.prepare((4,))
    assert compiled.notes() == ("compiled for batches of 4",)
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    for expected, got in zip(plain.run({"x": x}).values(), compiled.run({"x": x}).values(), strict=True):
        assert np.allclose(expected, got)
