"""What one life of a process hands to the next."""

import os
from pathlib import Path

import pytest

from server.core.settings import FakeSettings, ModelSettings
from server.handed_on import NOTHING, Loads, hand_on, handed_on

LOADS: Loads = {
    "plain": None,
    "own": ModelSettings(max_batch=3, instances=2, fake=FakeSettings(table_us={1: 2.5, 8: 4.0})),
    "ünïcode": ModelSettings(),
}


@pytest.mark.parametrize("loads", [{}, LOADS])
def test_it_comes_back_once_whole_and_leaves_no_file_open(loads: Loads) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    number = hand_on(loads)
    assert handed_on(number) == loads
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert handed_on(number) is None


def test_nothing_is_nothing() -> None:
    assert handed_on(NOTHING) is None


def test_what_is_no_such_thing_is_nothing(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text('{"m": 3}')
    assert handed_on(os.open(other, os.O_RDONLY)) is None
