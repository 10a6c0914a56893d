"""Sampled rows as Parquet: one file from its hidden beginning to its name, read back, and joined with what was true.

Floor 4, loaded by name: the one file here that imports pyarrow, which is large and an extra. Never decides when a file ends.

Columns: `time_us`, `id_hash`, `row`, `arm`, `epoch`, `weight`, `inclusion`, `queue_us`, `execute_us`; `inputs.NAME`,
`callers.NAME`, `outputs.NAME`, a list (of lists) where a row has several elements; `statuses.FEATURE`, see FEATURES.md.
"""

import fcntl
import os
import secrets
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from server.core.hashing import id_hash
from server.core.tensors import Array
from server.monitoring.samples import Samples
from server.registry.durable import sync_folder

OPEN = ".open-"
"""How the name of a file begins that is being written, or was when its writer died."""
_PLAIN = ("time_us", "id_hash", "row", "inclusion", "queue_us", "execute_us")
_ALIKE = ["arm", "epoch", "weight", "inclusion", "execute_us"]
"""Columns with few values, for which a dictionary is worth its while."""


def to_table(samples: Samples) -> Any:
    """The rows as a table. Raises: ValueError for values that none can have."""
    columns: dict[str, Any] = {name: pa.array(getattr(samples, name)) for name in _PLAIN}
    for name, kind in (("arm", pa.string()), ("epoch", pa.int64()), ("weight", pa.float64())):
        columns[name] = pa.repeat(pa.scalar(getattr(samples, name), kind), samples.rows)
    try:
        for group in ("inputs", "callers", "outputs"):
            columns |= {f"{group}.{name}": _column(array) for name, array in getattr(samples, group).items()}
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(f"rows of {samples.key} cannot be a table: {error}") from None
    columns |= {f"statuses.{name}": pa.array(samples.statuses[:, at]) for at, name in enumerate(samples.features)}
    return pa.table(columns)


class TableFile:
    """A file that is visible once it is whole. Its writer holds it (`flock`): who finds it unheld knows that the writer died.

    Ownership: one thread. Raises: OSError from every method.
    """

    def __init__(self, folder: Path, schema: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.schema = schema
        self.path = folder / f"{OPEN}{secrets.token_hex(8)}.parquet"
        self._file = self.path.open("xb")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if not os.fstat(self._file.fileno()).st_nlink:
                raise OSError("somebody who started took the new file for one that was left")
            self._writer = pq.ParquetWriter(self._file, schema, compression="zstd", use_dictionary=_ALIKE)
        except BaseException:
            self._remove()
            raise

    @property
    def nbytes(self) -> int:
        """Written so far."""
        return self._file.tell()

    def add(self, table: Any) -> None:
        """Append the rows of a table of the file's schema."""
        self._writer.write_table(table)

    def finish(self, name: str) -> Path:
        """Everything on disk, then under its name: the only moment at which it becomes visible."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self.path.rename(final := self.path.with_name(name))
        self._file.close()
        sync_folder(final.parent)
        return final

    def abandon(self) -> None:
        """Leave nothing behind. Idempotent; raises nothing."""
        with suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()  # it would try again when it is collected, at a time of its own
        self._remove()

    def _remove(self) -> None:
        with suppress(OSError):
            self.path.unlink()
        with suppress(OSError):
            self._file.close()


def remove_left(folder: Path) -> None:
    """Remove what writers that died have left in the folders of all versions."""
    for path in folder.glob(f"*/*/{OPEN}*"):
        with suppress(OSError), path.open("rb") as file:  # held by one that lives, or gone meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def read_samples(folder: Path, model: str, version: int, first_us: int, last_us: int) -> Any:
    """The rows of a version that happened from `first_us` on and before `last_us`, as one table in the order of files.

    Files that retention takes meanwhile are left out. A column that some files have as numbers and others, where callers choose
    a dimension, as lists, is one of lists. Raises: ValueError for files that are not whole, or do not fit each other.
    """
    wanted = (pc.field("time_us") >= first_us) & (pc.field("time_us") < last_us)
    tables = []
    for path in sorted((folder / model / str(version)).glob("[!.]*.parquet")):
        with suppress(FileNotFoundError):
            tables.append(pq.read_table(path, filters=wanted, partitioning=None))
    depths: dict[str, int] = {}
    for table in tables:
        for field in table.schema:
            depths[field.name] = max(depths.get(field.name, 0), _depth(field.type))
    alike = [pa.table({name: _nested(table[name], depths[name]) for name in table.column_names}) for table in tables]
    try:
        return pa.concat_tables(alike, promote_options="default") if alike else pa.table({})
    except pa.ArrowException as error:
        raise ValueError(f"files of {model}:{version} do not fit each other: {error}") from None


def labelled(samples: Any, outcomes: Any) -> Any:
    """Those rows of `samples` (a table of `read_samples`) that have an outcome, with it in the column `label`.

    `outcomes`: a table with `prediction_id`, the id of the request, `row` and `label`; of two of one row the later holds.
    Predictions without an id cannot be told apart, and have none.
    """
    ids = outcomes["prediction_id"].to_pylist()
    keys = pa.table(
        {
            "id_hash": pa.array([id_hash(each) if each else None for each in ids], pa.uint64()),
            "row": outcomes["row"].cast(pa.int32()),
            "label": outcomes["label"],
        }
    ).drop_null()
    last = keys.group_by(["id_hash", "row"], use_threads=False).aggregate([("label", "last")])
    # lists cannot be joined: their rows' numbers are
    rows = samples.select(["id_hash", "row"]).append_column("at", pa.array(np.arange(len(samples))))
    joined = rows.join(last, ["id_hash", "row"], join_type="inner").sort_by("at")
    return samples.take(joined["at"]).append_column("label", joined["label_last"])


def _column(array: Array) -> Any:
    rows, *dims = array.shape
    flat = np.ascontiguousarray(array).reshape(-1)
    values = pa.array(flat.tolist(), pa.binary()) if array.dtype == object else pa.array(flat)
    if prod(dims) == 1:
        return values
    for at in range(len(dims) - 1, -1, -1):
        lists = rows * prod(dims[:at])
        values = pa.ListArray.from_arrays(pa.array(np.arange(lists + 1) * dims[at], pa.int32()), values)
    return values


def _depth(kind: Any) -> int:
    return 1 + _depth(kind.value_type) if pa.types.is_list(kind) else 0


def _nested(column: Any, depth: int) -> Any:
    """The column with each value in as many lists as are missing."""
    values = column.combine_chunks()
    for _ in range(depth - _depth(column.type)):
        values = pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1), pa.int32()), values)
    return values
