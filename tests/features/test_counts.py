"""Values by view and status."""

import numpy as np

from feature_client.schema import DEFAULTED, Status
from server.features.counts import Counts
from tests.features.examples import features


def test_totals_go_on_over_loads() -> None:
    counts, views = Counts(), features()
    assert counts.readings() == {}
    names = ("carrier_delay", "carrier_flights", "recent")
    first, again = counts.counter(views.view_of, names), counts.counter(views.view_of, names[:1])
    stale = Status.STALE | DEFAULTED
    first.add(np.array([[0, 0, stale], [Status.GIVEN, 0, stale], [Status.NOT_FOUND, 0, 0]], np.uint8))
    first.add(np.array([[0], [0], [0]], np.uint8))
    again.add(np.array([[0, 0]], np.uint8))
    assert counts.readings() == {
        ("carrier_delays@1", "PRESENT"): 7,
        ("carrier_delays@1", "GIVEN"): 1,
        ("carrier_delays@1", "DEFAULTED(STALE)"): 2,
        ("airport_delays@1", "PRESENT"): 3,
        ("airport_delays@1", "NOT_FOUND"): 1,
    }
