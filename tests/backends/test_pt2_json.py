import math
from typing import Any

import pytest

from server.backends import pt2_json as read
from server.core.errors import LoadFailed


def test_values_that_are_what_they_must_be() -> None:
    assert read.mapping({"a": 1}, "x") == {"a": 1}
    assert read.sequence([1], "x") == [1]
    assert read.text("é", "x") == "é"
    assert read.whole(-(2**63), "x") == -(2**63)
    assert read.real(3, "x") == 3.0
    assert read.real(1e300, "x") == 1e300
    assert math.isnan(read.real("NaN", "x"))
    assert read.truth(False, "x") is False
    assert read.variant({"as_int": 3}, "x") == ("as_int", 3)
    assert read.field({"a": None}, "a", "x") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mapping", []),
        ("sequence", {}),
        ("text", 3),
        ("text", "x" * 10_001),
        ("text", "\ud800"),
        ("whole", True),
        ("whole", 2**63),
        ("whole", "1"),
        ("real", True),
        ("real", 2**64),
        ("real", "inf"),
        ("truth", 1),
        ("variant", {}),
        ("variant", {"as_int": 1, "as_float": 1.0}),
    ],
)
def test_other_values_are_refused_with_their_place(name: str, value: Any) -> None:
    with pytest.raises(LoadFailed, match=r"^here: "):
        getattr(read, name)(value, "here")


def test_fields_that_are_missing_and_integers_that_are_too_small() -> None:
    with pytest.raises(LoadFailed, match="here: 'b' is missing"):
        read.field({"a": 1}, "b", "here")
    with pytest.raises(LoadFailed, match="here: -1 is no integer from 0 on"):
        read.whole(-1, "here", least=0)
