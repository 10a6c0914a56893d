"""The native plane's names and numbers for requests that are not executed, as errors of the domain."""

import pytest

from server.core.errors import DeviceLost, Expired, NotReady, Overloaded, PodiumError, ShuttingDown
from server.dataplane.interface import QueueClosed
from server.dataplane.native.endings import not_admitted, unexecuted

LOST = "its device is lost"


@pytest.mark.parametrize(
    ("refused", "staged", "kind", "text"),
    [
        (1, False, Expired, "Request timeout expired"),
        (1, True, Expired, "Request timeout expired"),
        (2, False, ShuttingDown, "Server is stopping"),
        (3, False, NotReady, LOST),
        (3, True, DeviceLost, LOST),
    ],
)
def test_what_was_admitted_and_not_executed(refused: int, staged: bool, kind: type[PodiumError], text: str) -> None:
    error = unexecuted(refused, LOST, staged=staged)
    assert (type(error), str(error)) == (kind, text)
    assert unexecuted(refused, LOST, staged=staged) is not error


@pytest.mark.parametrize(
    ("outcome", "kind", "text"),
    [
        ("queue_full", Overloaded, "Exceeds maximum queue size"),
        ("too_many_requests", Overloaded, "Exceeds maximum queue size: 7 requests are in flight in this server"),
        ("too_many_bytes", Overloaded, "Exceeds maximum queue size: 7 bytes of inputs are in flight in this server"),
        ("passed", Expired, "Request timeout expired"),
        ("predicted", Expired, "Request timeout expired: predicted to finish 1.500 ms after its deadline"),
        ("closed", QueueClosed, "the version has just left service"),
        ("stopped", ShuttingDown, "Server is stopping, scheduler for model has stopped accepting new inference requests"),
    ],
)
def test_what_was_not_admitted(outcome: str, kind: type[PodiumError], text: str) -> None:
    error = not_admitted(outcome, 1_500_000, 7)
    assert (type(error), str(error)) == (kind, text)
    if outcome == "queue_full":
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == 0.0015
        unknown = not_admitted(outcome, 0, 0)
        assert isinstance(unknown, Overloaded)
        assert unknown.retry_after_s is None
