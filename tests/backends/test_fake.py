import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backends.base import LoadTask
from server.backends.fake import FakeBackend, from_checksum, open_backend, row_checksums, tau_us
from server.backends.samples import sample_inputs
from server.core.errors import BackendFailed, LoadFailed
from server.core.measured import measured_bytes
from server.core.settings import FakeSettings, ModelSettings
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, Array, TensorSpec
from server.core.versions import VersionKey
from tests.core.test_measured import measured

FREE = FakeSettings(t0_us=0, row_us=0)


class Time:
    """A clock that a sleep moves, and that moves a microsecond whenever it is read."""

    def __init__(self) -> None:
        self.now = 0
        self.slept: list[float] = []

    def clock(self) -> int:
        self.now += 1000
        return self.now

    def sleep_s(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += round(seconds * 1e9)


def backend(datatype: str = "FP32", settings: FakeSettings = FREE, max_batch: int = 64) -> tuple[FakeBackend, Time]:
    time = Time()
    inputs = (TensorSpec("x", datatype, (2,)), TensorSpec("wide_x", datatype, (-1,), optional=True))
    outputs = (
        TensorSpec("echo_x", datatype, (2,)),
        TensorSpec("echo_wide_x", datatype, (-1,)),
        TensorSpec("sum", datatype, (3, -1)),
    )
    return FakeBackend(Signature("m", inputs, outputs, max_batch), settings, time.clock, time.sleep_s), time


@pytest.mark.parametrize("datatype", list(NUMPY_DTYPES))
def test_rows_come_back_as_they_were(datatype: str) -> None:
    fake, _ = backend(datatype)
    inputs = sample_inputs(fake.signature, 5, "varied", free_dim=4)
    outputs = fake.run(inputs)
    np.testing.assert_array_equal(outputs["echo_x"], inputs["x"])
    np.testing.assert_array_equal(outputs["echo_wide_x"], inputs["wide_x"])
    assert outputs["echo_x"] is not inputs["x"]
    assert (outputs["sum"].dtype, outputs["sum"].shape) == (NUMPY_DTYPES[datatype], (5, 3, 1))
    expected = from_checksum(datatype, row_checksums(fake.signature, inputs, 5))
    np.testing.assert_array_equal(outputs["sum"], np.broadcast_to(expected.reshape(5, 1, 1), (5, 3, 1)))


@pytest.mark.parametrize("datatype", list(NUMPY_DTYPES))
def test_an_answer_depends_on_its_row_alone(datatype: str) -> None:
    fake, _ = backend(datatype)
    inputs = sample_inputs(fake.signature, 6, "varied")
    together = fake.run(inputs)
    for row in range(6):
        alone = fake.run({name: array[row : row + 1] for name, array in inputs.items()})
        for name, array in alone.items():
            np.testing.assert_array_equal(together[name][row : row + 1], array)


def test_different_rows_have_different_checksums() -> None:
    fake, _ = backend("INT64")
    x = np.arange(20_000, dtype=np.int64).reshape(10_000, 2)
    assert len(np.unique(row_checksums(fake.signature, {"x": x}, 10_000))) == 10_000
    swapped = row_checksums(fake.signature, {"x": x[:, ::-1]}, 10_000)
    assert (swapped != row_checksums(fake.signature, {"x": x}, 10_000)).all()


def test_a_left_out_optional_input_answers_by_checksum() -> None:
    fake, _ = backend("INT64")
    outputs = fake.run({"x": np.array([[1, 2]])})
    assert outputs["echo_wide_x"].tolist() == outputs["sum"][:, 0].tolist()


def test_a_model_without_batching_is_one_row() -> None:
    fake, _ = backend("FP16", max_batch=0)
    outputs = fake.run({"x": np.ones(2, np.float16), "wide_x": np.zeros((0,), np.float16)})
    assert (outputs["echo_x"].tolist(), outputs["echo_wide_x"].shape, outputs["sum"].shape) == ([1.0, 1.0], (0,), (3, 1))


def test_scalars_and_no_inputs() -> None:
    scalar = TensorSpec("x", "FP64", ())
    fake = FakeBackend(Signature("m", (scalar,), (TensorSpec("y", "FP64", ()), scalar), 0), FREE)
    assert fake.run({"x": np.full((), 4.0)})["x"].shape == ()
    empty = FakeBackend(Signature("m", (), (TensorSpec("y", "INT8", (2,)),), 8), FREE)
    assert empty.run({})["y"].tolist() == [[0, 0]]


def test_whole_numbers_survive_small_floats() -> None:
    checksums = np.array([0, 255, 256, 2**32 - 1], dtype=np.uint32)
    assert from_checksum("BF16", checksums).tolist() == [0, 0x437F, 0, 0x437F]
    assert from_checksum("FP16", checksums).tolist() == [0.0, 255.0, 256.0, 2047.0]
    assert from_checksum("FP64", checksums).tolist() == [0.0, 255.0, 256.0, 2.0**32 - 1]
    assert from_checksum("BOOL", checksums).tolist() == [False, True, False, True]
    assert from_checksum("UINT8", checksums).tolist() == [0, 255, 0, 255]


def rows_of(count: int) -> dict[str, Array]:
    return {"x": np.zeros((count, 2), np.float32)}


def test_a_batch_takes_its_time_by_sleeping_then_spinning() -> None:
    fake, time = backend(settings=FakeSettings(t0_us=1000, row_us=10))
    fake.run(rows_of(8))
    assert len(time.slept) == 1
    assert 970e-6 < time.slept[0] < 980e-6
    assert 1_080_000 <= time.now < 1_090_000


def test_a_short_batch_only_spins() -> None:
    fake, time = backend(settings=FakeSettings(t0_us=50, row_us=0))
    fake.run(rows_of(1))
    assert time.slept == []
    assert 50_000 <= time.now < 60_000


def test_a_batch_that_costs_nothing_does_not_wait() -> None:
    fake, time = backend()
    fake.run(rows_of(1))
    assert (time.slept, time.now) == ([], 3000)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({8: 100.0}, [100, 100, 100]),
        ({4: 100.0, 8: 140.0}, [100, 140, 220]),
        ({4: 100.0, 8: 140.0, 12: 300.0}, [100, 140, 460]),
        ({4: 100.0, 8: 20.0}, [100, 20, 0]),
    ],
)
def test_tables(table: dict[int, float], expected: list[float]) -> None:
    assert [tau_us(rows, FakeSettings(table_us=table)) for rows in (1, 8, 16)] == expected


@given(st.dictionaries(st.integers(1, 300), st.floats(0, 1e6), min_size=1), st.integers(1, 400))
def test_a_table_is_met_at_its_entries_and_never_negative(table: dict[int, float], rows: int) -> None:
    settings = FakeSettings(table_us=table)
    assert tau_us(rows, settings) >= 0
    assert all(tau_us(entry, settings) == taken for entry, taken in table.items())


GOOD = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1]}],
}


def opened(folder: Path, content: object, **settings: object) -> FakeBackend:
    (folder / "fake.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return open_backend(LoadTask(VersionKey("m", 1), folder, ModelSettings.model_validate(settings)))


def test_a_folder_is_opened(tmp_path: Path) -> None:
    fake = opened(tmp_path, GOOD, fake={"t0_us": 0, "row_us": 0})
    assert fake.signature == Signature("m", (TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (1,)),), 64)
    assert (fake.platform, fake.device, fake.memory_bytes()) == ("fake", "cpu", 0)
    assert fake.run(rows_of(3))["y"].shape == (3, 1)
    fake.close()


def test_settings_win_over_the_file(tmp_path: Path) -> None:
    fake = opened(tmp_path, GOOD, max_batch=0, inputs=[{"name": "x", "shape": [-1], "datatype": "INT8", "optional": True}])
    assert fake.signature.inputs == (TensorSpec("x", "INT8", (-1,), optional=True),)
    assert fake.signature.max_batch == 0


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "fake.json: Expecting property name"),
        ("[]", "fake.json: : Input should be"),
        ({"inputs": []}, "fake.json: outputs: Field required"),
        ({**GOOD, "inputs": [{"name": "x", "datatype": "FP31"}]}, "fake.json: inputs.0: Value error, unknown datatype 'FP31'"),
        ({**GOOD, "inputs": [{"name": "x", "shape": [1]}]}, "fake.json: tensor 'x' needs a datatype and a shape"),
        (
            {**GOOD, "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "labels": "l"}]},
            "fake.json: labels belong into model.toml",
        ),
        ({**GOOD, "inputs": [{"name": "x", "datatype": "FP32"}]}, "fake.json: tensor 'x' needs a datatype and a shape"),
    ],
)
def test_a_file_that_describes_no_model(tmp_path: Path, content: object, text: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        opened(tmp_path, content)
    assert str(caught.value).startswith(text)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"fake\.json is missing"):
        open_backend(LoadTask(VersionKey("m", 1), tmp_path, ModelSettings()))


def test_settings_for_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match=r"model.toml states output 'q', but fake.json has the outputs \['y'\]"):
        opened(tmp_path, GOOD, outputs=[{"name": "q"}])


COUNTED = Signature("m", (TensorSpec("N", "INT32", (1,)),), (TensorSpec("OUT_N", "INT32", (1,)),), 4)


def test_a_request_says_how_many_answers_it_gets() -> None:
    time = Time()
    settings = FakeSettings(t0_us=500, row_us=0, responses=9, responses_input="N")
    fake = FakeBackend(COUNTED, settings, time.clock, time.sleep_s)
    for number in (3, 0):
        inputs = {"N": np.full((2, 1), number, np.int32)}
        begun = time.now
        answers = list(fake.stream(inputs))
        assert [answer["OUT_N"].tolist() for answer in answers] == [[[number], [number]]] * number
        assert time.now - begun >= 500_000 * number


@pytest.mark.parametrize("numbers", [[[-1]], [[2], [3]], []])
def test_numbers_of_answers_that_make_no_sense(numbers: list[list[int]]) -> None:
    fake = FakeBackend(COUNTED, FakeSettings(t0_us=0, row_us=0, responses_input="N"))
    with pytest.raises(BackendFailed, match="input 'N' must say one number of answers"):
        next(fake.stream({"N": np.array(numbers, np.int32).reshape(len(numbers), 1)}))


@pytest.mark.parametrize("responses", [0, 1, 5])
def test_where_the_request_does_not_say_the_settings_do(responses: int) -> None:
    fake, _ = backend(settings=FakeSettings(t0_us=0, row_us=0, responses=responses))
    inputs = sample_inputs(fake.signature, 2, "varied")
    answers = list(fake.stream(inputs))
    assert len(answers) == responses
    for answer in answers:
        np.testing.assert_array_equal(answer["echo_x"], inputs["x"])


@pytest.mark.parametrize("name", ["nobody", "x"])
def test_the_input_that_counts_must_be_a_number(tmp_path: Path, name: str) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1]}
    (tmp_path / "fake.json").write_text(json.dumps({"inputs": [tensor], "outputs": []}))
    task = LoadTask(VersionKey("m", 1), tmp_path, ModelSettings(fake=FakeSettings(responses_input=name)))
    with pytest.raises(LoadFailed, match=f"fake.responses_input is '{name}', which is no input of datatype INT32 or INT64"):
        open_backend(task)


@pytest.mark.parametrize("device", ["cpu", "accelerator"])
@pytest.mark.parametrize("absolute", [False, True])
def test_times_that_were_measured_elsewhere_are_replayed(tmp_path: Path, device: str, absolute: bool) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "fake.json").write_text(json.dumps({"inputs": [], "outputs": []}))
    document = tmp_path / "m" / "recorded" / "h200.json"
    document.parent.mkdir()
    document.write_bytes(measured_bytes(measured()))
    path = str(document) if absolute else "recorded/h200.json"
    fake = FakeSettings.model_validate({"measured": path, "device": device, "device_id": 90})
    opened = open_backend(LoadTask(VersionKey("m", 1), folder, ModelSettings(fake=fake)))
    assert isinstance(opened, FakeBackend)
    assert [tau_us(rows, opened._settings) for rows in (1, 8)] == [100.0, 170.5]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (None, "fake.measured 'm.json' cannot be read: No such file"),
        (b"{}", "fake.measured 'm.json': model: Field required"),
        (measured_bytes(measured(costs_ns={})), "fake.measured 'm.json' holds no times"),
    ],
)
def test_a_document_that_cannot_be_replayed_fails_the_load(tmp_path: Path, data: bytes | None, fault: str) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "fake.json").write_text(json.dumps({"inputs": [], "outputs": []}))
    if data is not None:
        (tmp_path / "m" / "m.json").write_bytes(data)
    settings = ModelSettings(fake=FakeSettings(measured="m.json"))
    with pytest.raises(LoadFailed, match=fault):
        open_backend(LoadTask(VersionKey("m", 1), folder, settings))
