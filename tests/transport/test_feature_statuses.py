"""What an answer says of its features."""

import json

import numpy as np

from feature_client.schema import DEFAULTED, Status, status_text
from server.transport.feature_statuses import worth_telling


def test_only_what_was_not_simply_there_is_told_and_then_for_every_row() -> None:
    names = ("a", 'b"', "c")
    statuses = np.zeros((3, 3), np.uint8)
    assert worth_telling(names, statuses) == "{}"
    statuses[1, 1], statuses[2, 2] = Status.TIMEOUT | DEFAULTED, Status.GIVEN
    assert json.loads(worth_telling(names, statuses)) == {
        'b"': ["PRESENT", "DEFAULTED(TIMEOUT)", "PRESENT"],
        "c": ["PRESENT", "PRESENT", "GIVEN"],
    }


def test_every_status_has_its_text() -> None:
    codes = [status | default for status in Status for default in (0, DEFAULTED)]
    told = json.loads(worth_telling(("a",), np.array(codes, np.uint8)[:, None]))
    assert told == {"a": [status_text(code) for code in codes]}
