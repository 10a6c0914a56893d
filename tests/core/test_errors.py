import inspect

import pytest

from server.core import errors
from server.core.errors import BackendDead, BackendFailed, InputsUnfit, PodiumError

CLOSED = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


def test_the_list_is_closed_and_has_one_base() -> None:
    assert len(CLOSED) == 23
    assert all(issubclass(kind, PodiumError) for kind in CLOSED)
    assert not issubclass(PodiumError, ValueError | OSError | RuntimeError)


@pytest.mark.parametrize("kind", CLOSED)
def test_an_error_says_exactly_its_text(kind: type[PodiumError]) -> None:
    assert str(kind("input 'X' is wrong")) == "input 'X' is wrong"
    assert kind.__doc__


def test_a_dead_backend_and_unfit_inputs_are_failures_of_a_batch() -> None:
    assert issubclass(BackendDead, BackendFailed)
    assert issubclass(InputsUnfit, BackendFailed)
