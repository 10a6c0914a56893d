"""CUDA's numbers of devices, worked out without CUDA."""

import pytest

from server.telemetry.visible_devices import by_number, visible

UUIDS = ["GPU-aa11", "GPU-ab22", "GPU-cc33"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, UUIDS),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", ["GPU-ab22"]),
        ("2, 0", ["GPU-cc33", "GPU-aa11"]),
        ("0,3,1", ["GPU-aa11"]),
        ("0,-1,1", ["GPU-aa11"]),
        ("1,1", []),
        ("1,GPU-ab22", []),
        ("GPU-cc", ["GPU-cc33"]),
        ("GPU-a,0", []),
        ("GPU-aa11,GPU-zz,0", ["GPU-aa11"]),
        ("MIG-11,0", ["MIG-11", "GPU-aa11"]),
    ],
)
def test_a_process_sees_what_its_environment_lets_it(setting: str | None, expected: list[str]) -> None:
    assert visible(setting, UUIDS) == expected


def test_numbers_are_told_from_names() -> None:
    assert [by_number(setting) for setting in (None, " 1,0", "GPU-aa", "MIG-1", "", "-1")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
