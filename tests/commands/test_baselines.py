"""`podium register --baseline-rows`: rows through the version's own backend, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from feature_client.contract import write_contract
from feature_client.feature_set import FeatureSet
from feature_client.schema import Array, Feature
from feature_client.view import feature_view
from server.commands.baseline_rows import fitted
from server.core.errors import InvalidRequest
from server.core.tensors import TensorSpec
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import from_document
from server.monitoring.streams import Category, Numeric
from server.registry.manifest import parse_manifest
from tests.commands.shell import REGISTER, Shell

ROWS = 40
QUALITY = "[monitoring.quality]\noutput = 'p'\n"


@feature_view(inputs={"day": "int64"}, features=[Feature("n", "int32", 0)])
def doubled(day: Array) -> dict[str, Array]:
    return {"n": (day * 2).astype(np.int32)}


def write_model(path: Path) -> None:
    """p = x[0] + x[1], and s = n twice: numbers of two types, none with a meaning."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x", "axis"], ["p"], keepdims=1),
            helper.make_node("Add", ["n", "n"], ["s"]),
        ],
        "tiny",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2]),
            helper.make_tensor_value_info("n", TensorProto.INT32, ["rows", 1]),
        ],
        [
            helper.make_tensor_value_info("p", TensorProto.FLOAT, ["rows", 1]),
            helper.make_tensor_value_info("s", TensorProto.INT32, ["rows", 1]),
        ],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def columns() -> dict[str, Any]:
    values = np.linspace(0, 0.5, ROWS)
    return {
        "x": np.stack([values, values], axis=1),
        "n": np.arange(ROWS),
        "late": values > 0.3,
        "when": np.arange(ROWS) * 3_600_000_000,
    }


@pytest.fixture
def rows(podium: Shell) -> Path:
    write_model(Path("trained.onnx"))
    path = Path("rows.npz")
    np.savez(path, **columns())
    return path


def registered(version: int = 1) -> Baseline:
    return from_document(Path(f"models/demo/{version}/baseline.json").read_bytes())


def test_a_version_is_registered_with_what_its_rows_and_answers_were(podium: Shell, rows: Path) -> None:
    Path("model.toml").write_text("max_batch = 16\n[monitoring]\ntolerance = 1.0\n" + QUALITY)
    options = ("--baseline-outcomes", "late", "--baseline-time", "when", "--settings", "model.toml")
    podium.output(*REGISTER, "--baseline-rows", str(rows), *options)
    made = registered()
    assert [(stream.name, stream.origin) for stream in made.streams] == [
        ("x[0]", "input"),
        ("x[1]", "input"),
        ("n", "input"),
        ("output:p", "output"),
        ("output:s", "output"),
    ]
    assert (made.rows, made.origin) == (ROWS, "registration")
    score = made.streams[3]
    assert isinstance(score, Numeric)
    assert (score.low, score.high) == (0.0, 1.0)
    assert made.layout.cells(made.counts, 3).bins.tolist() == [4] * 10
    assert made.quality is not None
    assert (made.quality.metrics["auc"], made.quality.rows) == (1.0, ROWS)
    assert 0 < made.latency_us[0] <= made.latency_us[1] <= made.latency_us[2]
    assert made.hourly == {}  # an hour has one row
    manifest = parse_manifest(Path("models/demo/1/manifest.json").read_bytes())
    assert manifest.derived == ("baseline.json",)
    assert "baseline.json" in manifest.files
    assert podium.output("lineage", "demo")


def test_the_settings_of_the_model_are_found_and_say_when_rows_happened(podium: Shell, rows: Path) -> None:
    np.savez(rows, **{**columns(), "n": np.full(ROWS, 96 * 3_600_000_000 % 2**31)})
    Path("models/demo").mkdir(parents=True)
    # an instant as an input, which is then no stream; this one has 32 bits only
    Path("models/demo/model.toml").write_text("[monitoring]\ntolerance = 1.0\ntime_input = 'n'\n")
    podium.output(*REGISTER, "--baseline-rows", str(rows))
    made = registered()
    assert [stream.name for stream in made.streams] == ["x[0]", "x[1]", "output:p", "output:s"]
    assert len(made.hourly) == 1
    assert made.quality is None


def test_rows_of_a_table(podium: Shell, rows: Path) -> None:
    given = columns()
    table = {"x[0]": given["x"][:, 0], "x[1]": given["x"][:, 1], "n": given["n"], "late": given["late"], "more": given["n"]}
    pq.write_table(pa.table(table), "rows.parquet")
    Path("model.toml").write_text(QUALITY)
    options = ("--settings", "model.toml", "--baseline-outcomes", "late")
    podium.output(*REGISTER, "--baseline-rows", str(rows), *options)
    podium.output(*REGISTER, "--baseline-rows", "rows.parquet", *options)
    one, other = registered(1), registered(2)
    assert one.streams == other.streams
    assert one.counts.tobytes() == other.counts.tobytes()
    assert one.quality == other.quality


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        ({"x": None}, (), "rows.npz: there is no 'x'; there are 'late', 'n', 'when'"),
        ({"n": np.arange(3)}, (), "not all columns have the same rows"),
        ({"x": np.ones((ROWS, 3))}, (), "'x': rows have shape [3] where the model takes [2]"),
        ({"n": np.full(ROWS, 2**40)}, (), f"'n': {2**40} is beyond what INT32 can hold"),
        ({"x": np.full((ROWS, 2), 1e300)}, (), "'x': 1e+300 is beyond what FP32 can hold"),
        ({"n": np.ones(ROWS)}, (), "'n': float64 cannot be INT32"),
        ({"x": np.full((ROWS, 2), "a")}, (), "'x': <U1 cannot be FP32"),
        ({}, ("--baseline-outcomes", "truth"), "there is no 'truth'"),
        ({}, ("--baseline-outcomes", "late"), "outcomes need [monitoring.quality] in model.toml"),
        ({}, ("--baseline-outcomes", "x"), "'x': float64 of shape [40, 2] is no column of numbers"),
        ({"when": np.ones(ROWS)}, ("--baseline-time", "when"), "'when' has no instants: float64"),
        ({}, ("--settings", "quality.toml", "--baseline-outcomes", "n"), "rows.npz: "),
        (
            {"x": np.full((ROWS, 2), 0.9)},
            ("--settings", "quality.toml", "--baseline-outcomes", "late"),
            "40 of 40 rows have no",
        ),
        ({}, ("--settings", "decoupled.toml"), "a decoupled version has no baseline"),
        ({}, ("--file", "baseline.json=rows.npz"), "baseline.json is both a file and made from --baseline-rows"),
        ({}, ("--file", "../out=rows.npz"), "file '../out' is absolute, hidden or leads upwards"),
        ({}, ("--file", "more=lost"), "lost is not a file"),
        ({}, ("--name", "../demo"), "path traversal"),
        ({}, ("--model", "rows.json"), "open: "),
        ({}, ("--baseline-rows", "rows.csv"), "rows.csv holds no rows that can be read"),
        ({}, ("--baseline-rows", "lost.npz"), "lost.npz: No such file"),
        ({}, ("--baseline-rows", "lost.parquet"), "lost.parquet: "),
        ({}, ("--baseline-rows", "broken.npz"), "broken.npz: no arrays by name"),
        ({}, ("--baseline-rows", "broken.parquet"), "broken.parquet: no table"),
    ],
)
def test_rows_that_do_not_fit_leave_no_version(
    podium: Shell, rows: Path, change: dict[str, Any], options: tuple[str, ...], text: str
) -> None:
    changed = {name: array for name, array in {**columns(), **change}.items() if array is not None}
    np.savez(rows, **changed)
    Path("rows.json").write_text("{")
    Path("broken.npz").write_text("no archive")
    Path("broken.parquet").write_text("no table")
    Path("quality.toml").write_text(QUALITY)
    Path("decoupled.toml").write_text("decoupled = true")
    assert text in podium.refusal(*REGISTER, "--baseline-rows", str(rows), *options)
    assert not Path("models").exists() or not list(Path("models").rglob("*.onnx"))


@pytest.mark.parametrize("option", ["--baseline-outcomes", "--baseline-time"])
def test_columns_of_no_rows_are_refused(podium: Shell, option: str) -> None:
    assert "which is not given" in podium.refusal(*REGISTER, option, "late")


def test_texts_and_models_without_batches(podium: Shell) -> None:
    names = {
        "inputs": [{"name": "t", "datatype": "BYTES", "shape": [1]}, {"name": "flag", "datatype": "BOOL", "shape": [1]}],
        "outputs": [{"name": "echo_t", "datatype": "BYTES", "shape": [1]}, {"name": "sum", "datatype": "FP32", "shape": [2]}],
    }
    Path("any.json").write_text(json.dumps(names))
    Path("model.toml").write_text("max_batch = 0\n[fake]\nt0_us = 0\nrow_us = 0\n")
    np.savez("rows.npz", t=np.array([b"a", b"b", b"b"]), flag=np.array([True, False, True]))
    options = ("--settings", "model.toml", "--baseline-rows", "rows.npz")
    podium.output("register", "--name", "demo", "--model", "any.json", *options)
    made = registered()
    assert [stream.name for stream in made.streams] == ["t", "flag", "output:echo_t", "output:sum[0]", "output:sum[1]"]
    assert isinstance(made.streams[0], Category)
    assert made.streams[0].vocabulary == ("b",)


def test_inputs_that_are_features_are_known_as_such(podium: Shell, rows: Path) -> None:
    write_contract(Path(), FeatureSet([doubled]))
    named = ("--file", "features.json=features.json", "--file", "features.npz=features.npz")
    podium.output(*REGISTER, "--baseline-rows", str(rows), *named)
    assert [(stream.name, stream.origin) for stream in registered().streams][2] == ("n", "feature")


@pytest.mark.parametrize(
    ("datatype", "array", "values"),
    [
        ("BYTES", np.array(["é", "b"]), [["é".encode()], [b"b"]]),
        ("BYTES", np.array([b"a", None], dtype=object), [[b"a"], [b""]]),
        ("BOOL", np.array([True, False]), [[True], [False]]),
        ("FP16", np.array([1, 2]), [[1.0], [2.0]]),
        ("FP32", np.array([np.nan, np.inf]), [[np.nan], [np.inf]]),
        ("BF16", np.array([1, 2], dtype=np.uint16), [[1], [2]]),
        ("UINT8", np.array([0, 255]), [[0], [255]]),
    ],
)
def test_columns_take_the_type_of_their_input(datatype: str, array: Any, values: list[list[object]]) -> None:
    made = fitted(TensorSpec("c", datatype, (1,)), array)
    assert str(made.tolist()) == str(values)


@pytest.mark.parametrize(
    ("datatype", "array"),
    [("BF16", np.ones(2)), ("UINT8", np.array([-1, 0])), ("BOOL", np.array([0, 1])), ("BYTES", np.array([1, 2]))],
)
def test_what_a_type_cannot_hold_is_refused(datatype: str, array: Any) -> None:
    with pytest.raises(InvalidRequest, match="'c': "):
        fitted(TensorSpec("c", datatype, (1,)), array)


def test_free_dimensions_fit_any_size_and_whole_shapes_are_made() -> None:
    assert fitted(TensorSpec("c", "FP32", (-1, 2)), np.ones((3, 5, 2))).shape == (3, 5, 2)
    assert fitted(TensorSpec("c", "FP32", (2, 2)), np.ones((3, 4))).shape == (3, 2, 2)
    with pytest.raises(InvalidRequest, match=r"rows have shape \[\]"):
        fitted(TensorSpec("c", "FP32", (-1,)), np.ones(3))
