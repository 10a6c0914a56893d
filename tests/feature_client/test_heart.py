"""The measure itself: a call that waits too long is caught, a process that stands still is not blamed on the call."""

import ctypes
import time

import pytest

from tests.feature_client.heart import SLACK_S, budget


def test_a_call_beyond_its_budget_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"0\.000 s of them standstill"), budget(0.01):
        time.sleep(SLACK_S + 0.1)


def test_a_standstill_of_the_process_is_not_the_calls() -> None:
    with budget(0.01):
        ctypes.PyDLL(None).usleep(700_000)  # holds the interpreter's lock
