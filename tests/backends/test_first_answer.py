"""A decoupled version, tried out by its first answer."""

from collections.abc import Generator, Mapping
from typing import Any

import pytest

from server.backends.first_answer import FirstAnswer
from server.core.errors import BackendFailed
from server.core.signature import Signature


class Endless:
    signature = Signature("m", (), (), 0)
    platform = "endless"
    device = "cpu"

    def __init__(self, answers: int) -> None:
        self.answers = answers
        self.given = self.ended = self.closed = 0

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError("it has no single answer")

    def stream(self, inputs: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        try:
            while self.given < self.answers:
                self.given += 1
                yield {"y": self.given}
        finally:
            self.ended += 1

    def memory_bytes(self) -> int:
        return 17

    def close(self) -> None:
        self.closed += 1


def test_only_the_first_answer_is_made() -> None:
    backend = Endless(2**62)
    first = FirstAnswer(backend)
    assert first.run({}) == {"y": 1}
    assert (backend.given, backend.ended) == (1, 1)
    assert (first.signature, first.platform, first.device, first.memory_bytes()) == (backend.signature, "endless", "cpu", 17)
    first.close()
    assert backend.closed == 1


def test_no_answer_is_a_failure_that_other_content_may_not_have() -> None:
    backend = Endless(0)
    with pytest.raises(BackendFailed, match="gave no answer"):
        FirstAnswer(backend).run({})
    assert backend.ended == 1
