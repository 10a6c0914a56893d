"""Samples come back to the bit, a retry is sampled again, and no disk is ever waited for."""

import errno
import json
import math
import os
import subprocess
import sys
import threading
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_client import samples
from feature_client.errors import EventError, StoreError
from feature_client.exact_json import columns_of, json_of
from feature_client.samples import Sampled, SampleWriter, chosen_rows, line_of, read_samples, sampled_of
from feature_client.schema import DTYPES, Array
from tests.feature_client.views import bytes_column


def some(count: int, origin: str = "delays:2", seed: int = 0) -> Sampled:
    rng = np.random.default_rng(seed)
    texts = bytes_column(*(f"k{index}".encode() for index in range(count)))
    return Sampled(
        origin,
        ("aircraft@2", "planned@1"),
        rng.integers(0, 2**50, count),
        {"tail": rng.integers(-5, 5, count), "origin": texts},
        {"distance_mi": rng.normal(size=count)},
        {"delay": rng.normal(size=count).astype(np.float32), "pair": rng.normal(size=(count, 2)), "carrier": texts},
        {"delay": np.full(count, 0x83, np.uint8)},
        {"aircraft@2": rng.integers(0, 2**50, count)},
        ("carrier",),
    )


def assert_same(one: Array, other: Array) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()


def assert_same_sample(one: Sampled, other: Sampled) -> None:
    assert (one.origin, one.views, one.given) == (other.origin, other.views, other.given)
    assert_same(one.as_of_us, other.as_of_us)
    for name in ("keys", "request", "values", "statuses", "available_us"):
        mine, its = getattr(one, name), getattr(other, name)
        assert list(mine) == list(its)
        for column in mine:
            assert_same(mine[column], its[column])


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def of_bits(name: str, shape: list[int], bits: bytes) -> Array:
    dtype, count = DTYPES[name], math.prod(shape)
    raw = np.resize(np.frombuffer(bits, np.uint8), count * dtype.itemsize)
    return (raw > 100 if name == "bool" else raw.view(dtype)).reshape(shape)


NUMBERS = st.builds(of_bits, st.sampled_from(sorted(set(DTYPES) - {"bytes"})), SHAPES, st.binary(min_size=1, max_size=100))
NANS = st.builds(
    lambda name, sign, bits: (
        np.array([np.copysign(np.nan, sign), 1.5, -np.inf, 5e-324], name).view(f"u{DTYPES[name].itemsize}")
        | np.array([bits, 0, 0, 0], f"u{DTYPES[name].itemsize}")
    ),
    st.sampled_from(["float16", "float32", "float64"]),
    st.sampled_from([1.0, -1.0]),
    st.integers(0, 511),
).map(lambda bits: bits.view(f"f{bits.itemsize}"))
TEXTS = st.lists(st.none() | st.binary(max_size=6), min_size=0, max_size=5).map(lambda values: bytes_column(*values))


@settings(deadline=None, max_examples=300)
@given(NUMBERS | NANS | TEXTS)
def test_columns_come_back_to_the_bit(column: Array) -> None:
    """Whatever the bits are: every NaN, infinities, both zeros, subnormal numbers, text that is no text."""
    text = json.dumps(json_of({"c": column}), allow_nan=False)
    assert_same(columns_of(json.loads(text))["c"], column)


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ([], "a table by name"),
        ({"c": 3}, "'c' is not as it was written"),
        ({"c": {"dtype": "float31", "values": []}}, "'c' is not"),
        ({"c": {"dtype": "float32", "values": ["x"]}}, "'c' is not"),
        ({"c": {"dtype": "float32", "values": [1.5]}}, "'c' is not"),
        ({"c": {"dtype": "float16", "values": ["0x1p+100"]}}, "'c' is not"),
        ({"c": {"dtype": "float32", "values": ["nan:1ffffffff"]}}, "'c' is not"),
        ({"c": {"dtype": "int8", "values": [300]}}, "'c' is not"),
        ({"c": {"dtype": "int8", "values": [1.5]}}, "'c' has values that are no int8"),
        ({"c": {"dtype": "int8", "shape": [2], "values": [1]}}, "'c' is not"),
        ({"c": {"dtype": "int8", "shape": [0], "values": [1]}}, "'c' is not"),
        ({"c": {"dtype": "bytes", "values": [1]}}, "'c' is not"),
    ],
)
def test_what_is_no_column(made: Any, problem: str) -> None:
    with pytest.raises(EventError, match=problem):
        columns_of(made)


def test_samples_come_back_to_the_bit() -> None:
    sampled = some(7)
    line = line_of(sampled)
    assert line.count(b"\n") == 1
    assert_same_sample(sampled_of(line), sampled)


def test_what_is_chosen_depends_on_who_asked_for_what_and_when() -> None:
    sampled = some(20_000)
    chosen = chosen_rows(sampled, 0.1)
    assert 1500 < len(chosen) < 2500
    alone = [len(chosen_rows(sampled.part(np.array([row])), 0.1)) for row in range(200)]
    assert np.flatnonzero(alone).tolist() == chosen[chosen < 200].tolist()  # whatever it is batched with
    for other in (some(20_000, origin="delays:3"), some(20_000, seed=1)):
        assert len(np.intersect1d(chosen, chosen_rows(other, 0.1))) < 400
    assert len(chosen_rows(sampled, 1.0)) == 20_000
    nobody = sampled.part(np.arange(3))
    assert len(chosen_rows(Sampled(**vars(nobody) | {"keys": {"k": bytes_column(None, b"", b"a")}}), 1.0)) == 3


def test_every_process_chooses_the_same(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(line_of(some(1000)))
    code = (
        "import sys; from pathlib import Path; from feature_client.samples import *;"
        " print(chosen_rows(next(read_samples([Path(sys.argv[1])])), .1).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("0", "1")
    }
    assert outputs == {f"{chosen_rows(some(1000), 0.1).tolist()}\n".encode()}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    writer = SampleWriter(path, 0.5, 10**6)
    batches = [some(10, seed=seed) for seed in range(20)]
    for batch in batches:
        writer.offer(batch)
    writer.close()
    writer.close()
    writer.offer(batches[0])
    found = list(read_samples([path]))
    expected = [batch.part(rows) for batch in batches if len(rows := chosen_rows(batch, 0.5))]
    for one, other in zip(found, expected, strict=True):
        assert_same_sample(one, other)
    assert writer.written_rows == sum(len(batch.as_of_us) for batch in expected)
    assert writer.dropped_rows == len(chosen_rows(batches[0], 0.5))


def test_a_full_file_becomes_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    line = len(line_of(some(2)))
    writer = SampleWriter(path, 1.0, 3 * line + 40)
    for seed in range(10):
        writer.offer(some(2, seed=seed))
    writer.offer(some(50))  # larger than a file may be
    writer.close()
    assert (writer.written_rows, writer.dropped_rows) == (20, 50)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["samples", "samples.1"]
    assert all(file.stat().st_size <= 3 * line + 40 for file in files)
    assert_same_sample(list(read_samples([path]))[-1], some(2, seed=9))
    again = SampleWriter(path, 1.0, 3 * line + 40)  # goes on where it was
    for seed in range(10, 13):
        again.offer(some(2, seed=seed))
    again.close()
    assert 3 <= len(list(read_samples([tmp_path / "samples.1", path]))) <= 6


def test_what_a_crash_left_unfinished_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    whole = line_of(some(3))
    path.write_bytes(whole * 2 + whole[:-30])
    assert len(list(read_samples([path]))) == 2
    writer = SampleWriter(path, 1.0, 10**7)
    writer.offer(some(1))
    writer.close()
    assert path.read_bytes() == whole * 2 + line_of(some(1))
    path.write_bytes(b"x" * 200_000)
    SampleWriter(path, 1.0, 10**7).close()
    assert path.read_bytes() == b""


def test_nobody_waits_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    slow = samples.line_of

    def hanging(sampled: Sampled) -> bytes:
        go.wait(20)
        return slow(sampled)

    monkeypatch.setattr(samples, "line_of", hanging)
    writer = SampleWriter(tmp_path / "samples", 1.0, 10**6, waiting=2)
    for _ in range(10):
        writer.offer(some(1))
    assert writer.dropped_rows >= 7
    go.set()
    writer.close()
    assert writer.written_rows + writer.dropped_rows == 10
    assert len(list(read_samples([tmp_path / "samples"]))) == writer.written_rows


class FullDisk(FileIO):
    """Takes every third line; of the next one a few bytes, and nothing of the one after that."""

    writes = 0

    def write(self, data: Any, /) -> int:
        self.writes += 1
        if self.writes % 4 in (3, 0):
            raise OSError(errno.ENOSPC, "no room")
        return super().write(data[:10] if self.writes % 4 == 2 else data) or 0


def test_a_full_disk_leaves_no_half_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "samples"
    monkeypatch.setattr(samples, "_open", lambda path: FullDisk(path, "ab"))
    writer = SampleWriter(path, 1.0, 10**6)
    for _ in range(6):
        writer.offer(some(1))
    writer.close()
    assert (writer.written_rows, writer.dropped_rows) == (2, 4)
    assert len(list(read_samples([path]))) == 2
    assert path.read_bytes() == line_of(some(1)) * 2
    assert caplog.text.count("no room") == 2


def test_a_closing_writer_gives_up_on_a_hanging_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, inside = threading.Event(), threading.Event()

    def hanging(sampled: Sampled) -> bytes:
        inside.set()
        return b"\n" if go.wait(20) else b""

    monkeypatch.setattr(samples, "line_of", hanging)
    monkeypatch.setattr(samples, "_CLOSE_S", 0.05)
    writer = SampleWriter(tmp_path / "samples", 1.0, 10**6, waiting=1)
    writer.offer(some(1))
    assert inside.wait(20)
    writer.offer(some(1))
    writer.offer(some(1))
    assert writer.dropped_rows == 1
    writer.close()
    go.set()


def test_most_batches_have_no_chosen_row(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path / "samples", 1e-12, 10**6)
    writer.offer(some(5))
    writer.close()
    assert (writer.written_rows, writer.dropped_rows, list(read_samples([tmp_path / "samples"]))) == (0, 0, [])


def test_what_cannot_be_written_or_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"samples cannot be written to '.*': No such file"):
        SampleWriter(tmp_path / "none" / "samples", 1.0, 10)
    with pytest.raises(EventError, match=r"samples cannot be read from '.*': No such file"):
        list(read_samples([tmp_path / "none"]))
    path, good = tmp_path / "samples", line_of(some(2))
    made = json.loads(good)
    for line, problem in (
        (b"{", "no sample"),
        (b"[]", "no sample"),
        (good.replace(b'"format":1', b'"format":2'), "the format is 2, not 1"),
        (json.dumps(made | {"as_of_us": [1.5, 2]}).encode(), "no sample"),
        (json.dumps(made | {"as_of_us": [1]}).encode(), "different lengths"),
        (json.dumps(made | {"statuses": {"delay": [[1], [2]]}}).encode(), "no sample"),
        (json.dumps(made | {"keys": {"tail": 3}}).encode(), "'tail' is not as it was written"),
    ):
        path.write_bytes(good + line + b"\n" + good)
        with pytest.raises(EventError, match=f"samples, line 2: .*{problem}"):
            list(read_samples([path]))
