"""What the native plane does beside what all planes do: two sides that each know of an end, and outputs in their wire form."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.core.clock import NS_PER_S, monotonic_ns
from server.core.errors import Expired, PodiumError
from server.core.signature import Signature
from server.core.tensors import TensorSpec
from server.dataplane.interface import Batch, Part
from server.dataplane.limit import InflightLimit
from server.dataplane.native.batches import results_of
from server.dataplane.native.plane import NativePlane
from server.dataplane.ticket import Ticket, TicketState
from tests.dataplane.histories import CountingReply, rows_of, rules
from tests.dataplane.planes import MS, Runner, deliver, echo, submit

ROOT = Path(__file__).parents[2]


class SlowToTell(NativePlane):
    """A plane whose word of natively ended tickets is late, as it is where the interpreter is busy."""

    def __init__(self) -> None:
        self.ended, self.go_on, self.told = threading.Event(), threading.Event(), threading.Event()
        super().__init__(monotonic_ns, InflightLimit(100, 2**20), deliver, slots=lambda device: 2)

    def _ended(self, tickets: Any, why: int) -> None:
        self.ended.set()
        self.go_on.wait(10)
        super()._ended(tickets, why)
        self.told.set()

    def holds_nothing(self) -> bool:
        return not self._open and not self._numbers


@pytest.fixture
def slow_to_tell() -> Iterator[SlowToTell]:
    made = SlowToTell()
    yield made
    made.go_on.set()
    made.stop()


def test_a_batch_may_end_before_python_hears_that_a_ticket_of_it_had_expired(slow_to_tell: SlowToTell) -> None:
    plane = slow_to_tell
    plane.open(rules(early_drop=False))
    gates = [threading.Event(), threading.Event()]
    begun = threading.Event()

    def gated(batch: Batch) -> list[Part]:
        begun.set()
        gates[0].wait(10)
        return echo(batch)

    runners = [Runner(plane, gated), Runner(plane, gated)]
    submit(plane, 1)
    assert begun.wait(10)
    _, doomed = submit(plane, 2, deadline_ns=monotonic_ns() + 50 * MS)
    _, kept = submit(plane, 3)
    assert plane.ended.wait(10)  # staged, and expired
    gates[0].set()
    assert (kept.result(10)["Y"] == rows_of(3, 1).arrays["X"] * 10).all()  # its batch has ended
    assert not doomed.done()
    plane.go_on.set()
    assert isinstance(doomed.exception(10), Expired)
    plane.stop()
    for runner in runners:
        runner.join(10)
    assert plane.holds_nothing()


def test_who_leaves_as_it_expires_learns_that_it_had(slow_to_tell: SlowToTell) -> None:
    plane = slow_to_tell
    plane.open(rules(early_drop=False))
    ticket, reply = submit(plane, 1, deadline_ns=monotonic_ns() + 20 * MS)
    assert plane.ended.wait(10)
    assert plane.cancel(ticket) is TicketState.ENDED
    assert isinstance(ticket.refusal, Expired)  # Predict counts by it
    plane.go_on.set()
    assert isinstance(reply.exception(10), Expired)
    assert plane.holds_nothing()


def test_who_leaves_as_the_plane_stops_learns_that_it_did(slow_to_tell: SlowToTell) -> None:
    plane = slow_to_tell
    plane.open(rules())
    ticket, _ = submit(plane, 1)
    stopping = threading.Thread(target=plane.stop)
    stopping.start()
    assert plane.ended.wait(10)
    assert plane.cancel(ticket) is TicketState.ENDED
    assert str(ticket.refusal) == "Server is stopping"
    plane.go_on.set()
    stopping.join(10)


def test_a_ticket_that_cannot_be_planned_is_not_kept(slow_to_tell: SlowToTell) -> None:
    plane = slow_to_tell
    plane.open(rules(max_batch=2))
    for _ in range(200):  # more than may be in flight
        with pytest.raises(IndexError):
            plane.submit(1, Ticket(rows_of(1, 3), CountingReply(), monotonic_ns()))
    assert plane.holds_nothing()
    Runner(plane, echo)
    assert len(submit(plane, 1)[1].result(10)["Y"]) == 1


def test_any_number_of_threads_may_wait_for_the_same_queue_and_stop(slow_to_tell: SlowToTell) -> None:
    plane = slow_to_tell
    plane.open(rules(early_drop=False))
    busy, release = threading.Event(), threading.Event()

    def slow(batch: Batch) -> list[Part]:
        busy.set()
        release.wait(10)
        return echo(batch)

    Runner(plane, slow)
    submit(plane, 1)
    assert busy.wait(10)
    plane.close(1)
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(plane.wait_idle(1, 10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)  # most of them wait by now; the others find it gone
    release.set()
    for thread in threads:
        thread.join(10)
    assert found == [True] * 4
    plane.go_on.set()
    stops = [threading.Thread(target=plane.stop) for _ in range(4)]
    for thread in stops:
        thread.start()
    for thread in stops:
        thread.join(10)
        assert not thread.is_alive()


LEFT_BEHIND = """
import time
from server.core.clock import monotonic_ns
from tests.dataplane.histories import rules
from tests.dataplane.planes import MS, Runner, echo, new_of, submit

def slow(batch):
    time.sleep(0.05)
    return echo(batch)

plane = new_of("native")(slots=lambda device: 2)
plane.open(rules(early_drop=False))
runners = [Runner(plane, slow) for _ in range(2)]
tickets = [submit(plane, tag, deadline_ns=monotonic_ns() + (1 + 3 * tag) * MS) for tag in range(60)]
time.sleep(0.03)
"""


def test_a_process_may_end_while_everything_is_under_way() -> None:
    run = subprocess.run([sys.executable, "-c", LEFT_BEHIND], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert run.returncode == 0, run.stderr


def internal(error: PodiumError) -> tuple[int, str, tuple[()]]:
    return 13, str(error), ()


def texts(max_batch: int) -> Any:
    signature = Signature("m", (TensorSpec("X", "INT64", (-1,)),), (TensorSpec("Y", "BYTES", (-1,)),), max_batch)
    return rules(max_batch=max_batch, signature=signature)


@pytest.mark.parametrize(
    ("array", "offsets"),
    [
        (np.array([b"a", b"bc"], dtype=object), [0, 5, 11]),
        (np.array([["a", "bc"], ["", "d"]], dtype=object), [0, 11, 20]),
        (np.array([b"a", b"bc"]), [0, 5, 11]),
        (np.empty((2, 0), dtype=object), [0, 0, 0]),
    ],
)
def test_texts_of_every_shape(array: Any, offsets: list[int]) -> None:
    parts = [Part(0, 2, {"Y": array})]
    ((first, last, outputs, error),) = results_of(parts, texts(2), internal, np.array([0, 1, 2]))
    assert (first, last, error) == (0, 2, None)
    assert outputs is not None
    assert outputs[0][1:] == (offsets, array.shape)
    assert len(outputs[0][0]) == offsets[-1]


def test_one_text_alone() -> None:
    ((_, _, outputs, _),) = results_of([Part(0, 1, {"Y": np.array(b"ab", dtype=object)})], texts(0), internal, np.array([0, 1]))
    assert outputs == [(b"\2\0\0\0ab", [0, 6], ())]


def test_a_request_whose_outputs_cannot_be_encoded_fails_alone() -> None:
    spans = np.array([0, 1, 3, 4])
    array = np.array([["a"], ["b"], ["\ud800"], ["d"]], dtype=object)
    made = results_of([Part(0, 3, {"Y": array})], texts(4), internal, spans)
    assert [(first, last, outputs is None) for first, last, outputs, _ in made] == [(0, 1, False), (1, 2, True), (2, 3, False)]
    assert made[1][3] == (13, "the outputs of 'm' could not be encoded: UnicodeEncodeError", ())


def test_an_error_that_is_no_text() -> None:
    error = PodiumError("no \udcff")
    assert results_of([Part(0, 1, None, error)], texts(1), internal, np.array([0, 1])) == [(0, 1, None, (13, "no ?", ()))]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i8").reshape(3, 2),
        np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2],
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.arange(6, dtype=np.float16).reshape(3, 2),
        np.zeros((3, 0), dtype=np.int64),
    ],
)
def test_numbers_of_every_layout(array: Any) -> None:
    ((_, _, outputs, _),) = results_of([Part(0, 3, {"Y": array})], rules(), internal, np.array([0, 1, 2, 3]))
    assert outputs is not None
    assert outputs[0].tolist() == array.tolist()
    assert (outputs[0].dtype, outputs[0].shape, outputs[0].flags.c_contiguous) == (np.int64, array.shape, True)


def test_what_is_no_number_fails_its_request() -> None:
    made = results_of([Part(0, 1, {"Y": np.array([["x"]])})], rules(), internal, np.array([0, 1]))
    assert made == [(0, 1, None, (13, "the outputs of 'm' could not be encoded: ValueError", ()))]


def test_a_deadline_beyond_all_is_no_reason_to_keep_a_ticket(slow_to_tell: SlowToTell) -> None:
    plane = slow_to_tell
    plane.open(rules())
    reply: Future[Any] = Future()
    ticket = Ticket(rows_of(1, 1), reply, monotonic_ns(), monotonic_ns() + 3600 * NS_PER_S)
    plane.submit(1, ticket)
    assert plane.cancel(ticket) is TicketState.WAITING
    assert plane.holds_nothing()
