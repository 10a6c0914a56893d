"""Writes on disk: whole or not there; digests of what was really written; locks that tell who is alive."""

import hashlib
import threading
from pathlib import Path

import pytest

from server.registry.durable import append_line, copy_new, digest_file, is_locked, locked, write_atomically, write_new


def test_content_is_replaced_and_nothing_is_left_over(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b"one", b"", b"three" * 100):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_new_means_new(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a", b"new")
    with pytest.raises(FileExistsError):
        copy_new(tmp_path / "a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("size_bytes", [0, 1, 2**20, 2**20 + 1])
def test_a_copy_is_digested_as_it_is_written(tmp_path: Path, size_bytes: int) -> None:
    data = bytes(index % 251 for index in range(size_bytes))
    (tmp_path / "a").write_bytes(data)
    digest = copy_new(tmp_path / "a", tmp_path / "b")
    assert (digest.sha256, digest.bytes) == (hashlib.sha256(data).hexdigest(), size_bytes)
    assert digest_file(tmp_path / "b") == digest
    assert (tmp_path / "b").read_bytes() == data


def test_a_torn_line_is_closed_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_line(path, "one")
    with path.open("a") as file:
        file.write("tor")
    append_line(path, "two")
    append_line(path, "three")
    assert path.read_text() == "one\ntor\ntwo\nthree\n"


def test_a_lock_is_seen_and_given_back_on_every_way_out(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    with pytest.raises(FileNotFoundError), locked(tmp_path):
        (tmp_path / "missing").read_bytes()
    assert not is_locked(tmp_path)
    assert is_locked(tmp_path / "gone")


def test_whoever_comes_second_waits_until_the_first_is_done(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path):
        thread.start()
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
