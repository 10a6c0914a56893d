"""Files of samples: every value is in them, none is half there, and old ones go."""

import contextlib
import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from server.core.hashing import id_hash
from server.core.monitoring_settings import ParquetSettings
from server.core.versions import VersionKey
from server.monitoring import parquet_sink
from server.monitoring.parquet_sink import ParquetSink
from server.monitoring.parquet_tables import TableFile, labelled, read_samples, to_table
from server.monitoring.samples import Samples
from server.monitoring.sink import Lost
from tests.monitoring.rows import KEY, rows_of

ROOT = Path(__file__).parents[2]


class Clock:
    def __init__(self) -> None:
        self.now_s = time.time()  # files have the system's

    def __call__(self) -> float:
        return self.now_s


def sink_in(folder: Path, clock: Callable[[], float] | None = None, **changes: Any) -> ParquetSink:
    settings = ParquetSettings(dir=str(folder), **changes)
    return ParquetSink(settings, lambda key: ((), {}), clock or Clock())


def files(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in folder.glob(f"*/*/{pattern}") if path.is_file())


def read_all(folder: Path, key: VersionKey = KEY) -> Any:
    return read_samples(folder, key.model, key.version, first_us=-(2**62), last_us=2**62)


def values(samples: Samples) -> dict[str, list[Any]]:
    """Every value of some samples, as a table would tell them."""
    found: dict[str, Any] = {
        name: getattr(samples, name).tolist() for name in ("time_us", "id_hash", "row", "inclusion", "queue_us", "execute_us")
    }
    found |= {name: [getattr(samples, name)] * samples.rows for name in ("arm", "epoch", "weight")}
    for group in ("inputs", "callers", "outputs"):
        for name, array in getattr(samples, group).items():
            one = array.size == len(array) and array.ndim > 1
            found[f"{group}.{name}"] = (array.reshape(-1) if one else array).tolist()
    found |= {f"statuses.{name}": samples.statuses[:, at].tolist() for at, name in enumerate(samples.features)}
    return found


def same(table: Any, expected: dict[str, list[Any]]) -> bool:
    # by repr: NaN is NaN, and every float is written with all of its digits
    return repr({name: table[name].to_pylist() for name in sorted(table.column_names)}) == repr(dict(sorted(expected.items())))


def test_every_value_is_read_back(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    first, second = rows_of(300, 1), rows_of(200, 2, first_us=10**15 + 300)
    sink.write([first])
    sink.write([second, rows_of(5, 3, key=VersionKey("other", 9))])
    assert not files(tmp_path)
    sink.close()
    expected = {name: column + values(second)[name] for name, column in values(first).items()}
    table = read_all(tmp_path)
    assert same(table, expected)
    assert table.schema.field("inputs.pixels").type == pa.list_(pa.list_(pa.uint8()))
    assert table.schema.field("inputs.half").type == pa.list_(pa.float16())
    assert table.schema.field("inputs.flags").type == pa.bool_()
    assert same(read_all(tmp_path, VersionKey("other", 9)), values(rows_of(5, 3)))
    assert len(files(tmp_path, "*.parquet")) == len(files(tmp_path)) == 2
    part = read_samples(tmp_path, *KEY, first_us=10**15 + 10, last_us=10**15 + 310)
    assert part["time_us"].to_pylist() == list(range(10**15 + 10, 10**15 + 310))


def test_what_nobody_sampled_is_an_empty_table(tmp_path: Path) -> None:
    assert read_all(tmp_path, VersionKey("fraud", 3)).num_rows == 0


def test_redacted_columns_are_in_no_file(tmp_path: Path) -> None:
    sink = ParquetSink(ParquetSettings(dir=str(tmp_path)), lambda key: (("user", "amount"), {"half": ("amount",)}))
    sink.write([rows_of(10)])
    sink.close()
    names = set(read_all(tmp_path).column_names)
    assert not {name for name in names if "amount" in name or "user" in name or "half" in name}
    assert {"inputs.flags", "statuses.age", "callers.at"} <= names


def test_a_file_ends_once_it_is_large_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_sink, "GROUP_BYTES", 10_000)
    sink = sink_in(tmp_path, max_file_bytes=20_000)
    written = [rows_of(100, seed) for seed in range(20)]
    for each in written:
        sink.write([each])
    there = files(tmp_path, "[!.]*")
    assert len(there) > 1
    assert all(path.stat().st_size >= 20_000 for path in there)
    sink.close()
    expected = {name: [value for each in written for value in values(each)[name]] for name in values(written[0])}
    tables = [
        pq.read_table(path, partitioning=None) for path in sorted(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
    ]
    assert same(pa.concat_tables(tables), expected)


def test_a_file_ends_once_it_is_old_enough_without_new_rows(tmp_path: Path) -> None:
    clock = Clock()
    sink = sink_in(tmp_path, clock, max_file_s=60)
    sink.write([rows_of(10)])
    clock.now_s += 59
    sink.idle()
    assert not files(tmp_path)
    clock.now_s += 1
    sink.idle()
    assert len(files(tmp_path, "[!.]*.parquet")) == 1
    clock.now_s += 100
    sink.idle()
    sink.close()
    assert len(files(tmp_path)) == 1


def test_many_versions_take_bounded_memory_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_sink, "_WAITING_BYTES", 30_000)
    monkeypatch.setattr(parquet_sink, "_OPEN_FILES", 3)
    sink = sink_in(tmp_path)
    for version in range(1, 8):
        for _ in range(2):
            sink.write([rows_of(50, version, key=VersionKey("m", version))])
        assert len(files(tmp_path, ".open-*")) <= 4
    sink.close()
    assert all(read_all(tmp_path, VersionKey("m", version)).num_rows == 100 for version in range(1, 8))


def test_a_free_dimension_that_is_one_now_and_then_is_a_list_when_read(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    one, two = (replace(rows_of(3), inputs={"x": np.ones((3, width))}) for width in (1, 2))
    for each in (one, two, one):
        sink.write([each])
        sink.close()
    table = read_all(tmp_path)
    assert sorted(table["inputs.x"].to_pylist(), key=len) == [[1.0]] * 6 + [[1.0, 1.0]] * 3
    sink.write([one, two])
    sink.close()
    assert read_all(tmp_path).num_rows == 15


def test_columns_of_two_types_do_not_fit_each_other(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    for dtype in (np.float32, np.bool_):
        sink.write([replace(rows_of(3), inputs={"x": np.ones(3, dtype)})])
        sink.close()
    with pytest.raises(ValueError, match="do not fit"):
        read_all(tmp_path)


def test_rows_that_cannot_be_a_table_are_lost_and_no_others(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    odd = np.array([b"", None, b"", b""], dtype=object)
    odd[0] = (1,)
    sink.write([rows_of(10), replace(rows_of(4), arm="odd", inputs={"x": odd})])
    with pytest.raises(Lost) as caught:
        sink.close()
    assert caught.value.losses == ((KEY, "odd", 4, 10**15),)
    assert read_all(tmp_path).num_rows == 10


WRITES_FOREVER = """
import sys
from pathlib import Path
from server.core.monitoring_settings import ParquetSettings
from server.monitoring import parquet_sink
from tests.monitoring.rows import rows_of
parquet_sink.GROUP_BYTES = 20_000
sink = parquet_sink.ParquetSink(ParquetSettings(dir=sys.argv[1], max_file_bytes=200_000), lambda key: ((), {}))
while True:
    sink.write([rows_of(200)])
    print("written", flush=True)
"""


def test_a_crash_leaves_whole_files_and_a_hidden_one_that_the_next_start_removes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITES_FOREVER, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "."},
    ) as writer:
        assert writer.stdout is not None
        while not (files(tmp_path, "[!.]*") and files(tmp_path, ".open-*")):
            assert writer.stdout.readline() == b"written\n"
        other = sink_in(tmp_path)
        assert files(tmp_path, ".open-*"), "who starts leaves what somebody alive is writing"
        writer.send_signal(signal.SIGKILL)
    left = files(tmp_path, ".open-*")
    whole = files(tmp_path, "[!.]*")
    rows = read_all(tmp_path).num_rows
    assert rows
    assert rows % 200 == 0
    sink_in(tmp_path)
    assert left not in (files(tmp_path, ".open-*"), [])
    assert files(tmp_path) == whole
    other.close()


FILLS_A_DISK = """
import resource, sys
from server.core.monitoring_settings import ParquetSettings
from server.monitoring import parquet_sink
from server.monitoring.sink import Lost
from tests.monitoring.rows import rows_of
parquet_sink.GROUP_BYTES = 20_000
sink = parquet_sink.ParquetSink(ParquetSettings(dir=sys.argv[1]), lambda key: ((), {}))
sink.write([rows_of(50, arm="before")])
sink.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
written, lost = 0, 0
for step in (*[sink.write] * 40, lambda rows: sink.close()):
    try:
        written += 200 * (step == sink.write)
        step([rows_of(200)])
    except Lost as error:
        lost += error.rows
print(written, lost)
"""


def test_a_disk_that_is_full_loses_rows_that_are_counted_and_leaves_no_half_file(tmp_path: Path) -> None:
    """A limit on a file's size is an error of the system where the disk's end would be."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", FILLS_A_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    written, lost = map(int, done.stdout.split())
    assert done.stderr == ""
    assert lost > 1000
    assert not files(tmp_path, ".open-*")
    found = read_all(tmp_path)
    assert found.num_rows == 50 + written - lost


def test_old_files_go_and_never_one_that_is_being_written(tmp_path: Path) -> None:
    clock = Clock()
    sink = sink_in(tmp_path, clock, retention_s=1000, max_file_s=10_000)
    for version in (1, 2):
        sink.write([rows_of(5, key=VersionKey("m", version))])
        sink.close()
    for at, path in enumerate(files(tmp_path)):
        os.utime(path, (clock.now_s - 500 * at, clock.now_s - 500 * at))
    sink.write([rows_of(60_000)])
    assert files(tmp_path, ".open-*")
    clock.now_s += 600
    sink.idle()
    assert [path.parent.name for path in files(tmp_path, "[!.]*")] == ["1"]
    clock.now_s += 600
    sink.idle()
    assert not files(tmp_path, "[!.]*")
    assert len(files(tmp_path, ".open-*")) == 1
    clock.now_s -= 1200
    sink.close()
    assert read_all(tmp_path).num_rows == 60_000


def test_the_oldest_go_while_all_have_too_many_bytes(tmp_path: Path) -> None:
    clock = Clock()
    sink = sink_in(tmp_path, clock)
    for version in (1, 2, 3):
        sink.write([rows_of(100, key=VersionKey("m", version))])
        sink.close()
    sizes = [path.stat().st_size for path in files(tmp_path)]
    for at, path in enumerate(files(tmp_path)):
        os.utime(path, (clock.now_s + at, clock.now_s + at))
    small = sink_in(tmp_path, clock, max_total_bytes=sizes[1] + sizes[2])
    small.idle()
    assert [path.parent.name for path in files(tmp_path)] == ["2", "3"]


def test_a_new_file_that_was_taken_for_a_left_one_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.monitoring.parquet_tables.fcntl.flock", lambda file, how: Path(file.name).unlink())
    with pytest.raises(OSError, match="somebody"):
        TableFile(tmp_path / "m" / "1", to_table(rows_of(1)).schema)
    sink = sink_in(tmp_path)
    sink.write([rows_of(7)])
    with pytest.raises(Lost, match="7 rows"):
        sink.close()


def test_outcomes_are_joined_by_request_and_row() -> None:
    ids = ["a", "b", "", "a"]
    samples = replace(
        rows_of(4),
        id_hash=np.array([id_hash(each) for each in ids], dtype=np.uint64),
        row=np.array([0, 0, 0, 1], dtype=np.int32),
    )
    outcomes = pa.table(
        {"prediction_id": ["a", "a", "", "b", "none", "a"], "row": [1, 0, 0, 7, 0, 1], "label": [9.0, 2.0, 3.0, 4.0, 5.0, 1.0]}
    )
    table = labelled(to_table(samples), outcomes)
    assert table["label"].to_pylist() == [2.0, 1.0]
    assert table["row"].to_pylist() == [0, 1]
    assert table["inputs.pixels"].to_pylist() == samples.inputs["pixels"][[0, 3]].tolist()


def test_the_documents_example_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hashes = np.array([id_hash(f"request-{at}") for at in range(10)], dtype=np.uint64)
    amounts = np.arange(10, dtype=np.float32)
    sink = sink_in(Path("samples"))
    samples = replace(rows_of(10), id_hash=hashes, row=np.zeros(10, dtype=np.int32))
    sink.write([replace(samples, inputs={"amount": amounts}, outputs={"score": amounts / 10})])
    sink.close()
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/SAMPLES.md").read_text("utf-8"), re.DOTALL)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(example, {})
    expected = [
        {"inputs.amount": 7.0, "outputs.score": float(np.float32(7) / 10), "label": 1.0},
        {"inputs.amount": 9.0, "outputs.score": float(np.float32(9) / 10), "label": 0.0},
    ]
    assert told.getvalue() == f"{expected}\n"
