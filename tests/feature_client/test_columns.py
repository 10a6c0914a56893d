"""Columns from tables and files: every type that can be taken over exactly, and an error with a name for every other."""

import gzip
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pytest

from feature_client.columns import from_arrow, read_columns, read_events
from feature_client.errors import EventError
from feature_client.point_in_time import check_events
from feature_client.schema import Array
from tests.feature_client.views import FLIGHTS, flights

NOON = datetime(2024, 7, 1, 12, tzinfo=UTC)
NOON_US = 1_719_835_200_000_000


class Frame:
    """What polars, pandas and DuckDB have in common."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def taken(column: Any, dtype: str) -> Array:
    return from_arrow(Frame(pa.table({"other": column, "x": column})), {"x": dtype})["x"]


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1)]


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_integers_widen(kind: Any) -> None:
    made = taken(pa.array([1, 100], kind), "int64")
    assert made.dtype == np.int64
    assert made.tolist() == [1, 100]
    made = taken(pa.array([1, None], kind), "float64")
    assert made.dtype == np.float64
    np.testing.assert_array_equal(made, [1.0, np.nan])


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_floats_widen_and_keep_what_is_no_number(kind: Any) -> None:
    made = taken(
        pa.array(np.array([0.5, -np.inf, np.nan], kind.to_pandas_dtype()), mask=np.array([False, False, False])), "float64"
    )
    assert made.dtype == np.float64
    np.testing.assert_array_equal(made, [0.5, -np.inf, np.nan])
    np.testing.assert_array_equal(taken(pa.array([None, np.float16(2.5)], kind), "float64"), [np.nan, 2.5])


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_text_becomes_bytes(kind: Any) -> None:
    for column in (pa.array(["a", None, "b"], kind), pa.chunked_array([pa.array(["a", None], kind), pa.array(["b"], kind)])):
        made = taken(column, "bytes")
        assert made.dtype == object
        assert made.tolist() == [b"a", None, b"b"]
    assert taken(pa.array([], kind), "bytes").tolist() == []


def test_text_of_any_language_becomes_its_utf8() -> None:
    words = ["Zürich", "", "東京", "a\0b"]
    encoded = pa.array(words).dictionary_encode()
    assert taken(encoded, "bytes").tolist() == taken(pa.array(words), "bytes").tolist() == [each.encode() for each in words]


def test_encoded_columns_are_decoded() -> None:
    assert taken(pa.array(["a", None, "a"]).dictionary_encode(), "bytes").tolist() == [b"a", None, b"a"]
    assert taken(pa.array([7, 7, 8], pa.int16()).dictionary_encode(), "int64").tolist() == [7, 7, 8]
    assert taken(pc.run_end_encode(pa.array(["a", "a", "b"])), "bytes").tolist() == [b"a", b"a", b"b"]
    assert taken(pc.run_end_encode(pa.array([True, True])), "bool").tolist() == [True, True]


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Zurich", "-05:00"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_instants_become_microseconds(unit: str, zone: str | None) -> None:
    noon = NOON if zone else NOON.replace(tzinfo=None)
    made = taken(pa.array([noon, datetime(1969, 12, 31, 23, 59, 59, tzinfo=noon.tzinfo)], pa.timestamp(unit, zone)), "int64")
    assert made.dtype == np.int64
    assert made.tolist() == [NOON_US, -1_000_000]


def test_columns_of_nothing_but_missing_values() -> None:
    assert taken(pa.nulls(2), "bytes").tolist() == [None, None]
    assert np.isnan(taken(pa.nulls(2), "float64")).all()
    for dtype in ("int64", "bool", "float64", "bytes"):
        assert len(taken(pa.nulls(0), dtype)) == 0


REFUSED: list[tuple[Any, str, str]] = [
    (pa.array([1, 2, None]), "int64", "'x' has no value in row 2; int64 must have one"),
    (pa.chunked_array([[1, 2], [3, None]]), "int64", "no value in row 3"),
    (pa.array([True, None]), "bool", "no value in row 1; bool"),
    (pa.array([None, NOON], pa.timestamp("us", "UTC")), "int64", "no value in row 0"),
    (pa.nulls(1), "int64", "no value in row 0"),
    (pa.array([2**63], pa.uint64()), "int64", "'x' cannot become int64 without losing anything: .*9223372036854775808"),
    (pa.array([2**53 + 1]), "float64", "'x' cannot become float64 without losing anything: .*9007199254740993"),
    (pa.array([1], pa.timestamp("ns")), "int64", "without losing anything: .*lose data"),
    (pa.array([2**60], pa.timestamp("s")), "int64", "out of bounds"),
    (pa.array([Decimal("1.5")]), "float64", r"'x' is decimal128\(2, 1\), which cannot become float64"),
    (pa.array([1.0]), "int64", "double, which cannot become int64"),
    (pa.array([True]), "int64", "bool, which cannot become int64"),
    (pa.array([True]), "float64", "bool, which cannot become float64"),
    (pa.array([1]), "bool", "int64, which cannot become bool"),
    (pa.array(["1"]), "int64", "string, which cannot become int64"),
    (pa.array([1]), "bytes", "int64, which cannot become bytes"),
    (pa.array([date(2024, 1, 1)]), "int64", "date32"),
    (pa.array([[1.0]]), "float64", "list<"),
    (pa.array([1.5]).dictionary_encode(), "int64", "double, which cannot become int64"),
]


@pytest.mark.parametrize(("column", "dtype", "text"), REFUSED, ids=[text for *_, text in REFUSED])
def test_what_would_be_lost_is_refused(column: Any, dtype: str, text: str) -> None:
    with pytest.raises(EventError, match=text):
        taken(column, dtype)


def test_tables_that_lack_what_is_wanted() -> None:
    table = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(EventError, match="there is no column 'b'; there are a, a"):
        from_arrow(table, {"b": "int64"})
    with pytest.raises(EventError, match="there is 2 columns 'a'"):
        from_arrow(table, {"a": "int64"})
    with pytest.raises(EventError, match="dict is no table"):
        from_arrow({"a": [1]}, {"a": "int64"})

    class Broken:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            raise TypeError("a column of mixed objects")

    with pytest.raises(EventError, match="cannot be taken over: a column of mixed objects"):
        from_arrow(Broken(), {"a": "int64"})
    assert from_arrow(table, {}) == {}


EVENTS = flights(200, 5)
"""Of every type, with NaN, None and empty text."""


def arrow_events() -> Any:
    columns: dict[str, Any] = {name: pa.array(column, from_pandas=True) for name, column in EVENTS.items()}
    columns["event_us"] = columns["event_us"].cast(pa.timestamp("us", "UTC"))
    columns["origin"] = columns["origin"].cast(pa.string(), safe=False).dictionary_encode()
    return pa.table({"unused": pa.nulls(200), **columns})


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(arrow_events(), path, row_group_size=64)


def write_ipc(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, arrow_events().schema) as writer:
        writer.write_table(arrow_events(), max_chunksize=64)


def write_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, arrow_events().schema) as writer:
        writer.write_table(arrow_events())


def write_csv(path: Path) -> None:
    table = arrow_events().set_column(2, "origin", arrow_events().column("origin").cast(pa.string()))
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as sink:
        pyarrow.csv.write_csv(table, sink)


def assert_events(made: dict[str, Array]) -> None:
    check_events(FLIGHTS, made)
    assert list(made) == list(FLIGHTS.columns)
    for name, column in made.items():
        np.testing.assert_array_equal(column, EVENTS[name])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.parquet", write_parquet),
        ("A.PARQUET", write_parquet),
        ("a.arrow", write_ipc),
        ("a.feather", write_ipc),
        ("a.arrow", write_stream),
        ("a.csv", write_csv),
        ("a.csv.gz", write_csv),
    ],
)
def test_files_give_what_was_written(tmp_path: Path, name: str, write: Any) -> None:
    path = tmp_path / "year=2024" / name  # a folder's name is no column
    path.parent.mkdir()
    write(path)
    made = read_events(path, FLIGHTS)
    path.unlink()
    assert_events(made)


def csv(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.csv"
    path.write_text(text, "utf-8")
    return path


def test_csv_says_missing_in_many_ways(tmp_path: Path) -> None:
    path = csv(tmp_path, 'f,s,b\n,,true\nNA,NA,false\nNaN,"",1\n1e3,"a,b",0\nnull,NULL,True\n')
    made = read_columns(path, {"s": "bytes", "f": "float64", "b": "bool"})
    np.testing.assert_array_equal(made["f"], [np.nan, np.nan, np.nan, 1000.0, np.nan])
    assert made["s"].tolist() == [None, b"NA", b"", b"a,b", b"NULL"]
    assert made["b"].tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("5,-7", [5, -7]),
        ("2024-07-01T12:00:00Z,2024-07-01T14:00:00.000001+02:00", [NOON_US, NOON_US + 1]),
        ("2024-07-01 12:00:00,2024-07-01T12:00:00.5", [NOON_US, NOON_US + 500_000]),
    ],
)
def test_csv_has_instants_as_people_write_them(tmp_path: Path, text: str, wanted: list[int]) -> None:
    made = read_columns(csv(tmp_path, "t\n" + text.replace(",", "\n") + "\n"), {"t": "int64"})
    assert made["t"].dtype == np.int64
    assert made["t"].tolist() == wanted


@pytest.mark.parametrize(
    ("text", "dtype", "error"),
    [
        ("x\n1\n1.5\n", "int64", "the column 'x' cannot be read as int64: .*1.5"),
        ("x\n2024-07-01T12:00:00Z\n2024-07-01T12:00:00\n", "int64", "cannot be read as int64"),
        ("x\nlate\n", "float64", "cannot be read as float64: .*late"),
        ("x\nNA\n", "int64", "cannot be read as int64"),
        ("x,y\n5,1\n,2\n", "int64", "no value in row 1"),
        ("x\nyes\n", "bool", "cannot be read as bool"),
        ("y\n1\n", "int64", "'x'.*does not exist"),
        ("x,y\n1\n", "int64", "cannot be read: .*Expected 2 columns"),
        ("", "int64", "cannot be read: .*[Ee]mpty"),
    ],
)
def test_csv_that_is_not_what_it_should_be(tmp_path: Path, text: str, dtype: str, error: str) -> None:
    with pytest.raises(EventError, match=error) as raised:
        read_columns(csv(tmp_path, text), {"x": dtype})
    assert str(tmp_path / "a.csv") in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.csv", "a.csv.gz", "a.arrow"):
        path = tmp_path / name
        with pytest.raises(EventError, match=f"{name}' cannot be read: .*No such file"):
            read_events(path, FLIGHTS)
        path.write_bytes(b"\x01broken" * 50)
        with pytest.raises(EventError, match=f"{name}'"):
            read_events(path, FLIGHTS)
        path.write_bytes(b"")
        with pytest.raises(EventError, match=f"{name}'"):
            read_events(path, FLIGHTS)
    with pytest.raises(EventError, match=r"a\.xlsx' is of no kind that can be read: \.parquet, \.csv"):
        read_events(tmp_path / "a.xlsx", FLIGHTS)


@pytest.mark.parametrize(("name", "write"), [("a.parquet", write_parquet), ("a.arrow", write_ipc)])
def test_files_that_were_cut_off_or_lack_a_column(tmp_path: Path, name: str, write: Any) -> None:
    path = tmp_path / name
    write(path)
    with pytest.raises(EventError, match=r"a\..*': there is no column 'absent'"):
        read_columns(path, {"absent": "int64"})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EventError, match="cannot be read"):
        read_events(path, FLIGHTS)
