"""What was good holds until something better comes."""

import logging
from pathlib import Path

import pytest

from server.transport.kept import Kept


def number(path: Path) -> int:
    try:
        return int(path.read_text())
    except ValueError as error:
        raise OSError(f"no number: {error}") from None


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_a_change_is_read_once_and_a_broken_one_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "n"
    path.write_text("1")
    reads: list[int] = []

    def make() -> int:
        reads.append(number(path))
        return reads[-1]

    kept = Kept([path], make)
    assert (kept.get(), kept.get(), reads) == (1, 1, [1])
    replace(path, "22")
    assert (kept.get(), kept.get(), reads) == (22, 22, [1, 22])
    with caplog.at_level(logging.WARNING):
        replace(path, "none")
        assert (kept.get(), kept.get()) == (22, 22)
        assert len(caplog.records) == 1
        path.unlink()
        assert (kept.get(), kept.get()) == (22, 22)
        assert len(caplog.records) == 2
    replace(path, "3")
    assert kept.get() == 3


def test_what_was_never_good_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "n"
    with pytest.raises(OSError, match="No such file"):
        Kept([path], lambda: number(path))
    path.write_text("x")
    with pytest.raises(OSError, match="no number"):
        Kept([path], lambda: number(path))
