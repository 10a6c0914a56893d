"""Several members behind one face: each used by one thread at a time, all closed."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from server.backends.instances import Instances, PipelinedInstances, together
from server.core.signature import Signature
from server.core.tensors import Array, TensorSpec

SIGNATURE = Signature("m", (TensorSpec("X", "INT64", (1,)),), (TensorSpec("Y", "INT64", (1,)),), 8)


class Member:
    signature, platform, device = SIGNATURE, "fake", "cpu"

    def __init__(self, meeting: threading.Barrier | None = None, error: Exception | None = None) -> None:
        self.meeting, self.error = meeting, error
        self.runs, self.closed = 0, False
        self.lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        assert self.lock.acquire(blocking=False), "one thread at a time"
        if self.meeting is not None:
            self.meeting.wait(10)
        self.runs += 1
        self.lock.release()
        if self.error is not None:
            raise self.error
        return {"Y": 1}

    def stream(self, inputs: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        yield {"Y": 1}
        yield {"Y": 2}

    def memory_bytes(self) -> int:
        return 5

    def close(self) -> None:
        self.closed = True
        if self.error is not None:
            raise self.error


def test_as_many_run_at_once_as_there_are_members() -> None:
    meeting = threading.Barrier(2)
    members = [Member(meeting), Member(meeting)]
    both = Instances(members)
    threads = [threading.Thread(target=both.run, args=({},)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [member.runs for member in members] == [1, 1]
    assert (both.signature, both.platform, both.device, both.memory_bytes()) == (SIGNATURE, "fake", "cpu", 10)


def test_the_one_used_last_is_used_next_even_after_a_failure() -> None:
    members = [Member(error=ValueError("bad")), Member()]
    both = Instances(members)
    for _ in range(3):
        with pytest.raises(ValueError, match="bad"):
            both.run({})
    assert [member.runs for member in members] == [3, 0]


def test_streams_give_their_member_back_however_they_end() -> None:
    one = Instances([Member()])
    assert list(one.stream({})) == [{"Y": 1}, {"Y": 2}]
    left = one.stream({})
    next(left)
    left.close()
    assert one.run({}) == {"Y": 1}


def test_all_are_closed_though_one_refuses() -> None:
    members = [Member(error=ValueError("stuck")), Member()]
    with pytest.raises(ValueError, match="stuck"):
        Instances(members).close()
    assert all(member.closed for member in members)


class Work:
    def __init__(self, member: "Pipelined", inputs: Mapping[str, Array]) -> None:
        self.member, self.inputs = member, inputs

    def wait(self) -> None:
        if self.member.error is not None:
            raise self.member.error

    def outputs(self) -> dict[str, Any]:
        self.wait()
        return {"Y": self.inputs["X"]}


class Pipelined(Member):
    def __init__(self, error: Exception | None = None, refuses: Exception | None = None) -> None:
        super().__init__(None, error)
        self.refuses = refuses
        self.begun = 0

    def arrays(self, shapes: Mapping[str, Any]) -> dict[str, Any]:
        return dict.fromkeys(shapes, self)

    def begin(self, inputs: Mapping[str, Array]) -> Work:
        self.begun += 1
        if self.refuses is not None:
            raise self.refuses
        return Work(self, inputs)


def begun(members: list[Pipelined]) -> list[int]:
    return [member.begun for member in members]


def test_batches_are_handed_to_the_member_with_the_fewest_on_their_way() -> None:
    members = [Pipelined(), Pipelined()]
    both = together(members)
    assert isinstance(both, PipelinedInstances)
    assert both.arrays({"X": ((1,), np.dtype(np.int64))}) == {"X": members[0]}
    rows: Any = {"X": 7}
    first, second, third = both.begin(rows), both.begin(rows), both.begin(rows)
    assert begun(members) == [2, 1]
    second.wait()
    assert second.outputs() == {"Y": 7}
    fourth, fifth = both.begin(rows), both.begin(rows)
    assert begun(members) == [2, 3]
    del first, third  # a batch whose requests have all gone is dropped
    assert both.run(rows) == {"Y": 7}
    assert begun(members) == [3, 3]
    assert fourth.outputs() == fifth.outputs() == {"Y": 7}


@pytest.mark.parametrize("member", [{"error": ValueError("broken")}, {"refuses": ValueError("broken")}])
def test_a_batch_that_fails_is_not_on_its_way(member: dict[str, Exception]) -> None:
    members = [Pipelined(**member), Pipelined(**member)]
    both = PipelinedInstances(members)
    for _ in range(4):
        with pytest.raises(ValueError, match="broken"):
            both.run({})
    assert begun(members) == [4, 0]


def test_one_instance_is_itself_and_others_are_as_they_are() -> None:
    alone = Pipelined()
    assert together([alone]) is alone
    assert type(together([Member(), Pipelined()])) is Instances
