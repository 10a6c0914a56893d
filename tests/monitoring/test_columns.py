"""Which streams rows have, and what their values are."""

import numpy as np
import pytest

from feature_client.schema import DEFAULTED, Status
from server.core.settings import ModelSettings
from server.monitoring.columns import Columns, Reader, tally, text_of
from server.monitoring.samples import Samples
from tests.monitoring.plain_rows import rows_of, texts


def model(**tables: object) -> ModelSettings:
    return ModelSettings.model_validate(tables)


def read(samples: Samples, settings: ModelSettings | None = None, free: tuple[str, ...] = ()) -> dict[str, Columns]:
    return {columns.tensor: columns for columns in Reader(settings or ModelSettings(), free).read(samples)}


def test_a_tensor_of_one_element_has_its_own_name_and_others_are_numbered() -> None:
    found = read(rows_of({"x": np.ones((2, 1)), "y": np.ones(2), "m": np.ones((2, 2, 2))}, {"p": np.ones((2, 2))}))
    assert [columns.names for columns in found.values()] == [
        ("x",),
        ("y",),
        ("m[0]", "m[1]", "m[2]", "m[3]"),
        ("output:p[0]", "output:p[1]"),
    ]
    assert found["m"].origins == ("input",) * 4
    assert found["output:p"].origins == ("output",) * 2


def test_packed_features_have_their_own_names_and_statuses() -> None:
    settings = model(features={"views": [{"view": "v@1"}], "inputs": [{"name": "packed", "columns": ["a", "b", "c"]}]})
    statuses = np.array([[0, Status.NOT_FOUND | DEFAULTED], [Status.STALE, 0]], dtype=np.uint8)
    samples = rows_of({"packed": np.ones((2, 3)), "x": np.ones((2, 1))}, features=("c", "a"), statuses=statuses)
    found = read(samples, settings)
    assert found["packed"].names == ("a", "b", "c")
    assert found["packed"].origins == ("feature", "input", "feature")
    assert found["packed"].absent is not None
    assert found["packed"].absent.tolist() == [[True, False, False], [False, False, False]]
    assert found["x"].absent is None
    # as many columns as the settings say, or they mean another tensor
    assert read(rows_of({"packed": np.ones((2, 2))}), settings)["packed"].names == ("packed[0]", "packed[1]")


def test_a_feature_of_several_elements_has_one_status() -> None:
    statuses = np.array([[Status.TIMEOUT | DEFAULTED], [0]], dtype=np.uint8)
    found = read(rows_of({"e": np.ones((2, 2))}, features=("e",), statuses=statuses))["e"]
    assert found.origins == ("feature", "feature")
    assert found.absent is not None
    assert found.absent.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    ("status", "absent"),
    [
        (Status.PRESENT, False),
        (Status.GIVEN, False),
        (Status.STALE, False),
        (Status.NULL, True),
        (Status.NOT_FOUND, True),
        (Status.TIMEOUT, True),
        (Status.FP_MISMATCH, True),
        (Status.STALE | DEFAULTED, True),
    ],
)
def test_a_value_that_stands_in_is_absent(status: int, *, absent: bool) -> None:
    column = read(rows_of({"f": np.ones((1, 1))}, features=("f",), statuses=np.array([[status]], dtype=np.uint8)))["f"]
    assert (column.absent is not None) == absent


def test_what_has_no_streams() -> None:
    settings = model(
        inputs=[{"name": "ids", "shape": [-1]}, {"name": "pad", "pad_to": [4]}],
        monitoring={"max_elements": 4, "ignore": ["secret", "o"], "time_input": "when"},
    )
    inputs = {name: np.ones((2, 2), dtype=np.float32) for name in ("ids", "pad", "secret", "known_free")}
    inputs |= {"long": np.ones((2, 5), dtype=np.float32), "none": np.ones((2, 0), dtype=np.float32)}
    inputs |= {"when": np.ones((2, 1), dtype=np.float32)}
    words = texts(b"a", b"b", b"c", b"d").reshape(2, 2)
    bits = np.ones((2, 1), dtype=np.uint16)
    samples = rows_of({**inputs, "words": words, "bits": bits}, {"o": np.ones((2, 1))})
    assert read(samples, settings, ("known_free",)) == {}


def test_streams_that_are_ignored_now_are_known_by_their_tensor() -> None:
    settings = model(
        features={"views": [{"view": "v@1"}], "inputs": [{"name": "packed", "columns": ["a", "b"]}]},
        monitoring={"ignore": ["packed", "m", "score"], "time_input": "when"},
    )
    reader = Reader(settings)
    names = ["a", "b", "m", "m[3]", "output:score", "when", "c", "n[3]", "m[x]", "m[", "output:m", ""]
    assert [name for name in names if reader.ignored(name)] == [
        "a",
        "b",
        "m",
        "m[3]",
        "output:score",
        "when",
        "output:m",
    ]
    assert not Reader(ModelSettings()).ignored("")


def test_16_bits_are_what_the_settings_say() -> None:
    samples = rows_of({"h": np.array([[0x3FC0], [0xC000]], dtype=np.uint16)})
    for datatype, values in (("BF16", [1.5, -2.0]), ("UINT16", [0x3FC0, 0xC000])):
        reader = Reader(model(inputs=[{"name": "h", "datatype": datatype}]))
        (columns,) = reader.read(samples)
        assert reader.numbers(columns).ravel().tolist() == values
    outputs = rows_of({"x": np.ones((1, 1))}, {"h": np.array([[0x3FC0]], dtype=np.uint16)})
    reader = Reader(model(outputs=[{"name": "h", "datatype": "BF16"}]))
    assert reader.numbers(list(reader.read(outputs))[1]).tolist() == [[1.5]]


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (np.float16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.int16, np.float32),
        (np.uint8, np.float32),
        (np.int32, np.float64),
        (np.uint64, np.float64),
    ],
)
def test_numbers_are_kept_in_the_least_type_that_holds_them(dtype: type, kept: type) -> None:
    reader = Reader(ModelSettings())
    (columns,) = reader.read(rows_of({"x": np.ones((2, 1), dtype=dtype)}))
    assert reader.numbers(columns).dtype == kept


def test_texts_flags_and_integers_that_are_codes_are_categories() -> None:
    settings = model(monitoring={"categorical": ["code", "many[1]", "measure"]})
    samples = rows_of(
        {
            "t": texts(b"a"),
            "flag": np.array([[True]]),
            "code": np.array([[1]]),
            "many": np.array([[1, 2]]),
            "count": np.array([[3]]),
            "measure": np.array([[0.5]]),
        }
    )
    reader = Reader(settings)
    kinds = {name: reader.is_category(each, index) for each in reader.read(samples) for index, name in enumerate(each.names)}
    assert kinds == {
        "t": True,
        "flag": True,
        "code": True,
        "many[0]": False,
        "many[1]": True,
        "count": False,
        "measure": False,
    }


def test_categories_are_tallied_by_their_bytes() -> None:
    column = read(rows_of({"t": texts(b"a", "a", b"A", b"", None, b"\xff", "\ufffdff".encode(), b"a ")}))["t"]
    assert tally(column, 0) == ({"a": 2, "A": 1, "\ufffdff": 1, "\ufffdefbfbd6666": 1, "a ": 1}, 2)


def test_absent_categories_are_missing() -> None:
    statuses = np.array([[Status.NULL], [0], [0]], dtype=np.uint8)
    for values in (texts(b"x", b"y", b"y"), np.array([[1], [7], [7]])):
        column = read(rows_of({"f": values}, features=("f",), statuses=statuses))["f"]
        ((_, count),) = tally(column, 0)[0].items()
        assert (count, tally(column, 0)[1]) == (2, 1)


def test_integers_and_flags_are_written_in_decimal() -> None:
    found = read(rows_of({"n": np.array([[-5], [2**40], [-5]]), "b": np.array([[True], [False], [True]])}))
    assert tally(found["n"], 0) == ({"-5": 2, str(2**40): 1}, 0)
    assert tally(found["b"], 0) == ({"0": 1, "1": 2}, 0)


def test_different_bytes_have_different_texts_that_can_be_sent() -> None:
    data = [bytes([one, other]) for one in range(256) for other in range(256)]
    data += [text_of(each).encode() for each in (b"\xff", b"\xff\xfe")]
    made = [text_of(each) for each in data]
    assert len(set(made)) == len(data)
    assert all(text.encode().decode() == text for text in made)
