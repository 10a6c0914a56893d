from dataclasses import FrozenInstanceError

import pytest

from server.core.requests import InferRequest, WireTensor


def test_a_request_asks_for_nothing_it_does_not_say() -> None:
    request = InferRequest("m", "", "", (), (), 5)
    assert (request.deadline_ns, request.timeout_us, request.priority, dict(request.parameters)) == (None, 0, 0, {})


def test_requests_do_not_share_parameters() -> None:
    assert InferRequest("m", "", "", (), (), 5).parameters is not InferRequest("m", "", "", (), (), 5).parameters


@pytest.mark.parametrize("value", [WireTensor("x", "FP32", (1,), b"\0\0\0\0"), InferRequest("m", "", "", (), (), 5)])
def test_what_has_arrived_does_not_change(value: object) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(value, "name" if isinstance(value, WireTensor) else "model", "other")
