"""Several members behind one face: each used by one thread at a time, all closed."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from server.backends.instances import Instances, instances_of
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


class Pending:
    def __init__(self, member: "Pipelined") -> None:
        self.member = member

    def wait(self) -> None:
        """Nothing to wait for."""

    def outputs(self) -> dict[str, Any]:
        if self.member.error is not None:
            raise self.member.error
        return {"Y": self.member.number}


class Pipelined(Member):
    def __init__(self, number: int, error: Exception | None = None, refuses: bool = False) -> None:
        super().__init__(error=error)
        self.number, self.refuses = number, refuses
        self.begun = 0

    def notes(self) -> tuple[str, ...]:
        return "graphs", f"instance {self.number // 2}"

    def arrays(self, shapes: Any) -> dict[str, Any]:
        return {"from": self.number}

    def begin(self, inputs: Mapping[str, Array]) -> Pending:
        self.begun += 1
        if self.refuses:
            raise ValueError("full")
        return Pending(self)


def test_batches_go_to_the_instance_with_the_fewest_on_their_way() -> None:
    both: Any = instances_of([Pipelined(0), Pipelined(1)])
    assert both.arrays({}) == {"from": 0}
    assert both.notes() == ("graphs", "instance 0")
    first, second, third = both.begin({}), both.begin({}), both.begin({})
    for pending, number in ((first, 0), (second, 1), (third, 0)):
        pending.wait()
        assert pending.outputs() == {"Y": number}
    dropped = both.begin({})
    assert both.begin({}).outputs() == {"Y": 1}
    del dropped
    assert both.begin({}).outputs() == {"Y": 0}


@pytest.mark.parametrize("refuses", [True, False])
def test_a_batch_that_fails_is_not_counted_any_longer(refuses: bool) -> None:
    members = [Pipelined(0, None if refuses else ValueError("late"), refuses), Pipelined(1)]
    both: Any = instances_of(members)
    for _ in range(3):
        with pytest.raises(ValueError, match="full" if refuses else "late"):
            both.begin({}).outputs()
    assert [member.begun for member in members] == [3, 0]


def test_members_that_take_no_batch_ahead_make_none_that_does() -> None:
    assert not hasattr(instances_of([Member(), Pipelined(1)]), "begin")


class Counting(Member):
    pads_rows = True

    def __init__(self, *counts: tuple[int, int]) -> None:
        super().__init__()
        self.counts = [*counts]

    def take_elements(self) -> tuple[int, int]:
        return self.counts.pop(0)


def test_what_instances_count_for_themselves_is_added_up() -> None:
    both: Any = instances_of([Counting((1, 2), (0, 0)), Counting((10, 20), (5, 6))])
    assert both.pads_rows
    assert both.take_elements() == (11, 22)
    assert both.take_elements() == (5, 6)
    neither: Any = instances_of([Member(), Member()])
    assert neither.take_elements() is None
    assert not neither.pads_rows
