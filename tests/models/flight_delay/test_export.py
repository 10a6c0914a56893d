from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from models.flight_delay import export
from models.flight_delay.build import BuildResult
from models.flight_delay.data import Flights
from models.flight_delay.examples import as_rows
from models.flight_delay.inputs import CATEGORIES, MEASURES, SCHEDULE
from models.flight_delay.model import fit
from models.flight_delay.training import Settings, predict, train
from server.core.tensors import Array

ONNX_TYPES = {"BYTES": onnx.TensorProto.STRING, "INT32": onnx.TensorProto.INT32, "FP32": onnx.TensorProto.FLOAT}


@pytest.fixture(scope="module")
def content(built: BuildResult) -> bytes:
    return built.model_file.read_bytes()


def june(flights: Flights, rows: int) -> dict[str, Array]:
    chosen = flights.months(6)
    return as_rows(chosen.take(np.linspace(0, chosen.rows - 1, rows).astype(np.int64)).inputs)


def ask(content: bytes, inputs: dict[str, Array]) -> NDArray[np.float32]:
    probability = export.predict(content, inputs)["probability"]
    assert probability.dtype == np.float32
    return probability.astype(np.float32)


def changed(inputs: dict[str, Array], **values: Any) -> dict[str, Array]:
    """The same rows with some inputs set to one value."""
    copies = {name: array.copy() for name, array in inputs.items()}
    for name, value in values.items():
        copies[name][:] = value
    return copies


def test_the_file_states_the_inputs_and_outputs_of_the_recipe(content: bytes) -> None:
    graph = onnx.load_from_string(content).graph
    for values, specs in ((graph.input, SCHEDULE.specs), (graph.output, export.OUTPUTS)):
        assert [value.name for value in values] == [spec.name for spec in specs]
        for value, spec in zip(values, specs, strict=True):
            tensor = value.type.tensor_type
            assert tensor.elem_type == ONNX_TYPES[spec.datatype]
            assert [dim.dim_param or dim.dim_value for dim in tensor.shape.dim] == ["rows", 1]


def test_nothing_of_the_exporting_machine_is_left_in_the_file(content: bytes) -> None:
    assert str(Path(export.__file__).parent).encode() not in content
    assert b".py" not in content
    model = onnx.load_from_string(content)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_one_network_exports_to_the_same_bytes_and_answers_as_torch_does(flights: Flights) -> None:
    rows = flights.months(2).take(np.arange(2000))
    fitted = fit(rows)
    trained = train(rows, rows, fitted, Settings(epochs=1))
    content = export.to_onnx(trained.model, fitted)
    assert content == export.to_onnx(trained.model, fitted)
    valid = flights.months(6)
    difference = ask(content, as_rows(valid.inputs))[:, 0] - predict(trained.model, valid, fitted)
    assert np.abs(difference).max() < 1e-6


def test_a_row_answers_the_same_alone_and_in_a_batch(content: bytes, flights: Flights) -> None:
    inputs = june(flights, 40)
    together = ask(content, inputs)
    alone = np.concatenate([ask(content, {name: array[i : i + 1] for name, array in inputs.items()}) for i in range(40)])
    # sums of one row may be added up in another order than those of forty
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    assert len(np.unique(together)) > 30


def test_neighbours_cannot_move_a_single_bit_of_an_answer(content: bytes, flights: Flights) -> None:
    inputs = june(flights, 16)
    poisoned = changed(inputs, **dict.fromkeys(MEASURES, np.nan), carrier=b"\xff", day_of_week=-5, departure_minute=2**31 - 1)
    for name, array in poisoned.items():
        array[3] = inputs[name][3]
    before, after = ask(content, inputs), ask(content, poisoned)
    assert before[3].tobytes() == after[3].tobytes()
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("name", CATEGORIES)
def test_all_unknown_categories_are_one_and_no_known_one(content: bytes, flights: Flights, name: str) -> None:
    inputs = june(flights, 8)
    answers = [ask(content, changed(inputs, **{name: value})) for value in (b"ZZ", b"", b"\xff\xfe", "Århus".encode())]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert not np.array_equal(answers[0], ask(content, inputs))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", MEASURES)
def test_missing_and_absurd_measures_answer_with_a_probability(
    content: bytes, flights: Flights, name: str, value: float
) -> None:
    answer = ask(content, changed(june(flights, 4), **{name: np.float32(value)})).astype(np.float64)
    assert ((answer > 0) & (answer < 1)).all()


def test_missing_is_not_the_same_as_the_value_that_fills_it(content: bytes, flights: Flights) -> None:
    inputs = june(flights, 4)
    fill = fit(flights.months(1, 2, 3, 4, 5)).fill[-1]
    missing = ask(content, changed(inputs, plane_seats=np.float32(np.nan)))
    assert not np.array_equal(missing, ask(content, changed(inputs, plane_seats=fill)))
