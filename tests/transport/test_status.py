"""Every error of the domain has a code, and it is the one clients of NVIDIA Triton act on."""

from collections.abc import Iterator

import pytest
from grpc import StatusCode

from server.core import errors
from server.core.errors import PodiumError
from server.transport.status import CODES, code_for


def subclasses(kind: type[PodiumError]) -> Iterator[type[PodiumError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_error_has_a_code_of_its_own_or_of_a_parent() -> None:
    kinds = list(subclasses(PodiumError))
    assert len(kinds) >= 13
    for kind in kinds:
        assert any(parent in CODES for parent in kind.__mro__), kind


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest("x"), StatusCode.INVALID_ARGUMENT),
        (errors.NotFound("x"), StatusCode.NOT_FOUND),
        (errors.AlreadyExists("x"), StatusCode.ALREADY_EXISTS),
        (errors.NotReady("x"), StatusCode.UNAVAILABLE),
        (errors.Overloaded("x"), StatusCode.UNAVAILABLE),
        (errors.Expired("x"), StatusCode.UNAVAILABLE),
        (errors.ShuttingDown("x"), StatusCode.UNAVAILABLE),
        (errors.Cancelled("x"), StatusCode.CANCELLED),
        (errors.Unsupported("x"), StatusCode.UNIMPLEMENTED),
        (errors.BackendFailed("x"), StatusCode.INTERNAL),
        (errors.BackendDead("x"), StatusCode.INTERNAL),
        (errors.SharedMemoryFailed("x"), StatusCode.INTERNAL),
        (errors.LoadFailed("x"), StatusCode.INTERNAL),
        (errors.RegistryError("x"), StatusCode.INTERNAL),
    ],
)
def test_codes(error: PodiumError, code: StatusCode) -> None:
    assert code_for(error) is code


def test_an_error_of_no_known_kind_is_a_bug() -> None:
    assert code_for(KeyError("x")) is StatusCode.INTERNAL


def test_a_new_subclass_inherits() -> None:
    parents: tuple[type[errors.NotFound]] = (errors.NotFound,)
    # made from `type`, so that it is gone again before another test walks the subclasses
    assert code_for(type("NoSuchAlias", parents, {})("x")) is StatusCode.NOT_FOUND


def test_codes_that_triton_never_answers_are_not_used() -> None:
    never = {StatusCode.RESOURCE_EXHAUSTED, StatusCode.DEADLINE_EXCEEDED, StatusCode.FAILED_PRECONDITION}
    assert never.isdisjoint(CODES.values())
