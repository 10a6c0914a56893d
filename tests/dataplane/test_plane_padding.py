"""Inputs that are padded, on every kind of data plane: what a batch holds, whose costs it has, and what is counted."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.core.clock import NS_PER_S, monotonic_ns
from server.core.errors import Expired
from server.core.requests import InferRequest, WireTensor
from server.core.signature import Signature, check
from server.core.tensors import Array, Shapes, TensorSpec
from server.dataplane.interface import Batch, Part
from server.dataplane.ticket import Ticket
from tests.dataplane.histories import rules
from tests.dataplane.planes import New, Runner, new_of
from tests.planes import PLANES

SIZES = (2, 4, 8)
IDS = TensorSpec("ids", "INT16", (-1, -1), pad_to=SIZES, pad_value=-1)
SCALE = TensorSpec("scale", "FP32", (2,), optional=True)
COSTS = (1, 2, 3, 4, 10, 20, 30, 40, 100, 200, 300, 400)


@pytest.fixture(scope="module", params=PLANES)
def new(request: pytest.FixtureRequest) -> New:
    return new_of(request.param)


@pytest.fixture
def plane(new: New) -> Iterator[Any]:
    made = new()
    yield made
    made.stop()


def signature(max_batch: int = 8) -> Signature:
    return Signature("m", (IDS, SCALE), (TensorSpec("Y", "INT64", (1,)),), max_batch)


def ticket_of(tag: int, shape: tuple[int, ...], against: Signature, scale: bool = False) -> tuple[Ticket, Future[Any], Array]:
    ids = np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape) + 10 * tag
    tensors = [WireTensor("ids", "INT16", shape, ids.tobytes())]
    if scale:
        tensors.append(WireTensor("scale", "FP32", (shape[0], 2), bytes(8 * shape[0])))
    reply: Future[Any] = Future()
    made = Ticket(check(InferRequest("m", "", "", tuple(tensors), (), 0), against), reply, monotonic_ns())
    return made, reply, ids


def sums(batch: Batch) -> list[Part]:
    """Every row's sum, padding too."""
    ids = batch.inputs["ids"]
    rows = len(ids) if batch.rules.signature.max_batch else 1
    return [Part(0, len(batch.spans) - 1, {"Y": ids.reshape(rows, -1).sum(axis=1, dtype=np.int64)[:, None]})]


def padded(ids: Array, start: int) -> Array:
    dims = [next(size for size in SIZES if size >= dim) for dim in ids.shape[start:]]
    made = np.full((*ids.shape[:start], *dims), -1, np.int16)
    for index in np.ndindex(*ids.shape):
        made[index] = ids[index]
    return made


REQUESTS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 8), st.integers(0, 8), st.booleans()), min_size=1, max_size=14)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REQUESTS, st.booleans())
def test_every_request_is_answered_for_its_own_rows(new: New, asked: list[tuple[int, int, int, bool]], elsewhere: bool) -> None:
    plane = new()

    def allocate(shapes: Shapes) -> dict[str, Array]:
        return {name: np.full(shape, 99, dtype) for name, (shape, dtype) in shapes.items()}

    against = signature()
    where: dict[str, Any] = {"allocate": allocate} if elsewhere else {}
    plane.open(rules(signature=against, costs_ns=COSTS, **where))
    tickets = [ticket_of(tag, (rows, *dims), against, scale) for tag, (rows, *dims, scale) in enumerate(asked)]
    for ticket, _, _ in tickets:
        plane.submit(1, ticket, wake=False)
    runner = Runner(plane, sums)
    for _, reply, ids in tickets:
        assert reply.result(10)["Y"][:, 0].tolist() == padded(ids, 1).reshape(len(ids), -1).sum(axis=1).tolist()
    plane.stop()
    runner.join(10)
    assert sum(batch.rows for batch in runner.batches) == sum(rows for rows, *_ in asked)
    assert sum(batch.elements for batch in runner.batches) == sum(ids.size for _, _, ids in tickets)
    for batch in runner.batches:
        whole = batch.inputs["ids"]
        assert all(dim in SIZES for dim in whole.shape[1:])
        assert batch.padding_elements == whole.size - batch.elements
        assert (whole[batch.rows :] == whole[0]).all()
    # all of a shape were there at once: no more batches than lanes, but where one is full
    lanes = {(ticket.shape_key, ticket.size_class) for ticket, _, _ in tickets}
    assert len(runner.batches) <= len(lanes) + sum(rows for rows, *_ in asked) // 5


def test_a_model_without_batching_is_padded_too(plane: Any) -> None:
    against = signature(max_batch=0)
    plane.open(rules(max_batch=0, signature=against, costs_ns=(1, 2, 3)))
    runner = Runner(plane, sums)
    ticket, reply, ids = ticket_of(3, (3, 2), against)
    plane.submit(1, ticket)
    assert reply.result(10)["Y"].tolist() == [[int(padded(ids, 0).sum())]]
    assert runner.batches[0].inputs["ids"].shape == (4, 2)
    assert (runner.batches[0].elements, runner.batches[0].padding_elements) == (6, 2)


def test_a_batch_that_cannot_be_gathered_has_no_elements(plane: Any) -> None:
    def nowhere(shapes: Shapes) -> dict[str, Array]:
        raise MemoryError

    against = signature()
    plane.open(rules(signature=against, costs_ns=COSTS, allocate=nowhere))
    seen = threading.Event()

    def failed(batch: Batch) -> list[Part]:
        seen.set()
        return [Part(0, len(batch.spans) - 1, None, batch.fault)]

    runner = Runner(plane, failed)
    ticket, reply, _ = ticket_of(1, (1, 3, 3), against)
    plane.submit(1, ticket)
    assert str(reply.exception(10)) == "the batch could not be gathered: MemoryError"
    assert seen.is_set()
    assert (runner.batches[0].elements, runner.batches[0].padding_elements) == (0, 0)


def test_each_size_class_is_predicted_by_its_own_costs(plane: Any) -> None:
    """What would be late among the smallest is in time among larger ones, until those were seen to take as long."""
    against = signature()
    plane.open(rules(signature=against, costs_ns=(20 * NS_PER_S,) * 4 + (1000,) * 8))
    small, middle, large = (1, 2, 2), (1, 4, 3), (1, 5, 1)

    def soon(shape: tuple[int, ...]) -> Ticket:
        made = ticket_of(1, shape, against)[0]
        made.deadline_ns = made.due_ns = monotonic_ns() + 10 * NS_PER_S
        return made

    def refused(shape: tuple[int, ...]) -> bool:
        made = soon(shape)
        try:
            plane.submit(1, made)
        except Expired as refusal:
            return "predicted to finish" in str(refusal)
        plane.cancel(made)
        return False

    assert [refused(shape) for shape in (small, middle, large)] == [True, False, False]
    plane.submit(1, soon(large))
    batch = plane.take("cpu")
    assert batch.inputs["ids"].shape == (1, 8, 2)
    plane.enter_device(batch)
    plane.finish(batch, sums(batch), ran_rows=1, ran_ns=300 * NS_PER_S)
    assert [refused(shape) for shape in (middle, large)] == [False, True]
