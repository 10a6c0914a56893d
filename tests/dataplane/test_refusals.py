from typing import Any

import pytest

from server.core.errors import Expired, Overloaded, PodiumError, ShuttingDown
from server.dataplane.interface import QueueClosed
from server.dataplane.native.refusals import ended, refusal


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (("queue_full", 5, 0), Overloaded, "Exceeds maximum queue size"),
        (("too_many_requests", 0, 7), Overloaded, "Exceeds maximum queue size: 7 requests are in flight in this server"),
        (("too_many_bytes", 0, 8), Overloaded, "Exceeds maximum queue size: 8 bytes of inputs are in flight in this server"),
        (("passed", 0, 0), Expired, "Request timeout expired"),
        (("predicted", 1_500_000, 0), Expired, "Request timeout expired: predicted to finish 1.500 ms after its deadline"),
        (("closed", 0, 0), QueueClosed, "the version has just left service"),
        (
            ("stopped", 0, 0),
            ShuttingDown,
            "Server is stopping, scheduler for model has stopped accepting new inference requests",
        ),
    ],
)
def test_what_was_not_admitted_is_told_as_the_other_kind_does(said: Any, kind: type[PodiumError], text: str) -> None:
    refused = refusal(*said)
    assert (type(refused), str(refused)) == (kind, text)


@pytest.mark.parametrize(("ns", "seconds"), [(0, None), (2_500_000_000, 2.5)])
def test_a_full_queue_says_when_to_come_back_if_that_is_known(ns: int, seconds: float | None) -> None:
    refused = refusal("queue_full", ns, 0)
    assert isinstance(refused, Overloaded)
    assert refused.retry_after_s == seconds


def test_what_waited_ends_late_or_with_the_server() -> None:
    assert type(ended(stopping=False)) is Expired
    assert type(ended(stopping=True)) is ShuttingDown
