"""Aggregations that can be asked for."""

from collections.abc import Callable

import pytest

from feature_client.aggregation import KINDS, RESOLUTION, Aggregation, count, last, mean, rate, total
from feature_client.errors import DefinitionError
from feature_client.schema import hours


def test_each_kind_has_its_function() -> None:
    made = [count(hours(1)), total("x", hours(1)), mean("x", hours(1), resolution=0.5), rate("x", hours(1)), last("x")]
    assert tuple(each.kind for each in made) == KINDS
    assert [each.window_us for each in made] == [hours(1)] * 4 + [0]
    assert [each.column for each in made] == ["", *"xxxx"]
    assert [each.resolution for each in made] == [RESOLUTION, RESOLUTION, 0.5, RESOLUTION, RESOLUTION]


REFUSED: list[tuple[Callable[[], Aggregation], str]] = [
    (lambda: count(0), "longer than nothing"),
    (lambda: mean("x", -1), "longer than nothing"),
    (lambda: total("x", 2**62), "longer than nothing"),
    (lambda: rate("x", 1.5), "in whole microseconds"),  # type: ignore[arg-type]
    (lambda: total("x", 1, resolution=0.0), "above 0, and finite"),
    (lambda: total("x", 1, resolution=float("nan")), "above 0, and finite"),
    (lambda: total("x", 1, resolution=float("inf")), "above 0, and finite"),
    (lambda: Aggregation("last", "x", 5), "'last' has no window"),
    (lambda: Aggregation("median", "x", 5), "no aggregation 'median'; there are count, sum"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_what_cannot_be_asked_for(make: Callable[[], Aggregation], text: str) -> None:
    with pytest.raises(DefinitionError, match=text):
        make()
