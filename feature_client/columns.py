"""Columns as definitions want them, from tables and files: Parquet, CSV, Arrow, and whatever hands over an Arrow stream.

The only file here that imports pyarrow: Arrow is what polars, pandas and DuckDB all hand over. Nothing is lost on the way: what
the wanted type cannot hold exactly is an error that names the column.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from feature_client.errors import EventError
from feature_client.schema import Array, EventLog

_KINDS = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_(), "bytes": pa.large_binary()}
_NO_NUMBER = pa.array(["NA", "N/A", "NaN", "nan", "NULL", "null"])
"""What CSV files write where there is no number; an empty field is missing in any column."""


def from_arrow(table: Any, columns: Mapping[str, str]) -> dict[str, Array]:
    """Some columns of a table, in types of `COLUMN_DTYPES`.

    `table`: anything with `__arrow_c_stream__` (of pyarrow, polars, pandas, DuckDB). Integers widen to int64, and to float64
    where that is exact; instants of any unit and zone become int64 microseconds, those without a zone are UTC; text becomes
    its UTF-8.
    Missing values become NaN or None. Shapes: `[N]` each, perhaps read-only.
    Raises: EventError for columns that are not there, of types or with values that would lose something, or, where the type has
    no missing value, with one.
    """
    if not hasattr(table, "__arrow_c_stream__"):
        raise EventError(f"{type(table).__name__} is no table: it has no __arrow_c_stream__")
    try:
        arrow = pa.table(table)
    except (pa.ArrowException, TypeError) as error:
        raise EventError(f"the table cannot be taken over: {error}") from error
    return {name: _column(name, _only(arrow, name), dtype) for name, dtype in columns.items()}


def read_events(path: Path | str, source: EventLog) -> dict[str, Array]:
    """The columns of an event log from a file, in the file's order. As `read_columns`."""
    return read_columns(path, source.columns)


def read_columns(path: Path | str, columns: Mapping[str, str]) -> dict[str, Array]:
    """Some columns of a file: Parquet, CSV with a header (instants as ISO 8601 or microseconds), Arrow IPC, told by its suffix.

    Raises: EventError for a file that is not there, broken or of another kind, and as `from_arrow`.
    """
    read = next((READERS[suffix] for suffix in READERS if str(path).lower().endswith(suffix)), None)
    if read is None:
        raise EventError(f"'{path}' is of no kind that can be read: {', '.join(READERS)}")
    try:
        return from_arrow(read(Path(path), columns), columns)
    except (pa.ArrowException, OSError) as error:
        raise EventError(f"'{path}' cannot be read: {error}") from error
    except EventError as error:
        raise EventError(f"'{path}': {error}") from error


def _parquet(path: Path, columns: Mapping[str, str]) -> Any:
    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read([name for name in columns if name in file.schema_arrow.names])


def _ipc(path: Path, columns: Mapping[str, str]) -> Any:
    with pa.OSFile(str(path)) as source:  # not mapped: a file that is written anew meanwhile would end the process
        try:
            names = pa.ipc.open_file(source).schema.names
        except pa.ArrowInvalid:  # the format without an index at its end
            source.seek(0)
            return pa.ipc.open_stream(source).read_all()
        wanted = pa.ipc.IpcReadOptions(included_fields=[at for at, name in enumerate(names) if name in columns])
        return pa.ipc.open_file(source, options=wanted).read_all()


def _csv(path: Path, columns: Mapping[str, str]) -> Any:
    # as text first: types guessed from the first block would be wrong for later ones, and "NA" is a missing number, but a text
    text = {name: pa.binary() if dtype == "bytes" else pa.string() for name, dtype in columns.items()}
    options = pyarrow.csv.ConvertOptions(
        include_columns=list(columns),
        column_types=text,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    table = pyarrow.csv.read_csv(path, convert_options=options)
    return pa.table({name: _parsed(name, table.column(name), dtype) for name, dtype in columns.items()})


READERS: Mapping[str, Callable[[Path, Mapping[str, str]], Any]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".arrow": _ipc,
    ".feather": _ipc,
}


def _parsed(name: str, text: Any, dtype: str) -> Any:
    if dtype == "bytes":
        return text
    if dtype == "float64":
        text = pc.if_else(pc.is_in(text, _NO_NUMBER), pa.scalar(None, pa.string()), text)
    # instants: all with a zone or all without
    kinds = (pa.int64(), pa.timestamp("us", "UTC"), pa.timestamp("us")) if dtype == "int64" else (_KINDS[dtype],)
    reasons = []
    for kind in kinds:
        try:
            return text.cast(kind)
        except pa.ArrowInvalid as error:
            reasons.append(str(error))
    raise EventError(f"the column '{name}' cannot be read as {dtype}: {'; '.join(reasons)}")


def _only(table: Any, name: str) -> Any:
    found = table.schema.get_all_field_indices(name)
    if len(found) != 1:
        what = f"{len(found)} columns" if found else "no column"
        raise EventError(f"there is {what} '{name}'; there are {', '.join(table.schema.names)}")
    return table.column(found[0])


def _column(name: str, column: Any, dtype: str) -> Array:
    while pa.types.is_dictionary(column.type) or pa.types.is_run_end_encoded(column.type):
        column = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else pc.run_end_decode(column)
    if not pa.types.is_null(column.type) and not _fits(column.type, dtype):
        raise EventError(f"the column '{name}' is {column.type}, which cannot become {dtype} without losing anything")
    if column.null_count and dtype not in ("float64", "bytes"):
        row = pc.index(pc.is_null(column), True).as_py()
        raise EventError(f"the column '{name}' has no value in row {row}; {dtype} must have one")
    try:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", column.type.tz))
        column = column.cast(_KINDS[dtype])
    except pa.ArrowInvalid as error:
        raise EventError(f"the column '{name}' cannot become {dtype} without losing anything: {error}") from error
    if dtype == "float64":
        column = column.fill_null(np.nan)
    array: Array = column.to_numpy()
    return array


def _fits(kind: Any, dtype: str) -> bool:
    """Whether a type can become another one at all; some values may still not."""
    is_a = pa.types
    if dtype == "float64":
        return bool(is_a.is_floating(kind) or is_a.is_integer(kind))
    if dtype == "int64":
        return bool(is_a.is_integer(kind) or is_a.is_timestamp(kind))
    if dtype == "bool":
        return bool(is_a.is_boolean(kind))
    texts = (is_a.is_string, is_a.is_large_string, is_a.is_string_view)
    binaries = (is_a.is_binary, is_a.is_large_binary, is_a.is_binary_view, is_a.is_fixed_size_binary)
    return any(is_it(kind) for is_it in texts + binaries)
