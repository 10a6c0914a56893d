"""What the door knows of a call, and what it tells about its answer."""

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from server.core.clock import NS_PER_S, NS_PER_US
from server.core.requests import ANONYMOUS, INVALID_CONSUMER, InferRequest
from server.core.signature import CheckedRows, Signature
from server.core.tensors import TensorSpec
from server.core.versions import VersionKey
from server.dataplane.interface import Execution
from server.dataplane.ticket import Ticket
from server.features.interface import STATUSES_OUTPUT
from server.lifecycle.cache import AnswerCache
from server.service.predict import Hit
from server.transport.hand_over import HandOver
from server.transport.infer import Call, Inference, Pending, call_of
from tests.transport.calls import Context

SIGNATURE = Signature("m", (TensorSpec("x", "FP32", (2,)),), (TensorSpec("y", "FP32", (2,)),), 4)
ROWS = np.array([[1, 2]], dtype=np.float32)
START_NS = 7 * NS_PER_S


class Replica:
    key = VersionKey("m", 7)
    signature = SIGNATURE

    def __init__(self, cache: AnswerCache | None = None, features: Any = None) -> None:
        self.cache = cache
        self.features = features


class Predict:
    """Admits everything with one ticket, and remembers what it is told to."""

    def __init__(self, ticket: Any, replica: Replica, statuses: Any = None) -> None:
        self._ticket = ticket
        self._statuses = statuses
        self._replica = replica
        self.remembered: list[tuple[InferRequest, Mapping[str, Any]]] = []

    def admit(self, request: InferRequest, reply: Any) -> Any:
        if not isinstance(self._ticket, Hit):
            reply.set_result({"y": ROWS} if self._statuses is None else {"y": ROWS, STATUSES_OUTPUT: self._statuses})
        return self._replica, self._ticket

    def remember(self, replica: Replica, request: InferRequest, ticket: Any, outputs: Mapping[str, Any]) -> None:
        self.remembered.append((request, outputs))


def message(timing: bool | None = None, features: bool | None = None) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="m", id="a", raw_input_contents=[bytes(8)])
    made.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    if timing is not None:
        made.parameters["podium_timing"].bool_param = timing
    if features is not None:
        made.parameters["podium_features"].bool_param = features
    return made


def executed(taken_us: int, ran_us: int, rows: int) -> Ticket:
    reply: Any = None
    ticket = Ticket(CheckedRows({"x": ROWS}, 1, ()), reply, START_NS)
    ticket.execution = Execution(START_NS + taken_us * NS_PER_US, 0, START_NS + ran_us * NS_PER_US, rows)
    return ticket


def answered(
    ticket: Any, asked: pb.ModelInferRequest, replica: Replica | None = None, statuses: Any = None
) -> tuple[dict[str, Any], Predict, int]:
    """The parameters of an answer that is encoded 900 us after the call came in; and how often the engine was woken."""
    wakes: list[int] = []
    predict: Any = Predict(ticket, replica or Replica(), statuses)

    async def main() -> pb.ModelInferResponse:
        inference = Inference(predict, HandOver(lambda: wakes.append(1)), lambda: START_NS + 900 * NS_PER_US)
        response = await inference.once(asked, Call(START_NS))
        await asyncio.sleep(0)
        assert list(response.raw_output_contents) == [ROWS.tobytes()]
        return response

    response = asyncio.run(main())
    said = {name: getattr(each, str(each.WhichOneof("parameter_choice"))) for name, each in response.parameters.items()}
    return said, predict, len(wakes)


@pytest.mark.parametrize(
    ("metadata", "consumer"),
    [
        ((("podium-consumer", "checkout"),), "checkout"),
        ((("user-agent", "u"), ("podium-consumer", " night job "), ("traceparent", "00")), "night job"),
        ((("podium-consumer", "x" * 128),), "x" * 128),
        ((("podium-consumer", "x" * 129),), INVALID_CONSUMER),
        ((("podium-consumer", "a\tb"),), INVALID_CONSUMER),
        ((("podium-consumer", "café"),), INVALID_CONSUMER),
        ((("podium-consumer", b"checkout"),), INVALID_CONSUMER),
        ((("podium-consumer", "   "),), ""),
        ((("podium-consumer-bin", b"checkout"),), ""),
    ],
)
def test_a_call_is_its_consumers(metadata: tuple[tuple[str, str | bytes], ...], consumer: str) -> None:
    assert call_of(Context(metadata=metadata), 5).caller.consumer == consumer


def test_a_certificate_names_whoever_declares_nothing() -> None:
    def consumer(*metadata: tuple[str, str]) -> str:
        return call_of(Context(metadata=metadata), 5, subject_of=lambda context: "cn:web").caller.consumer

    assert consumer() == consumer(("podium-consumer", "  ")) == "cn:web"
    assert consumer(("podium-consumer", "checkout")) == "checkout"


def test_who_declares_nothing_costs_no_object() -> None:
    call = call_of(Context(2.0, (("user-agent", "u"),)), START_NS)
    assert call.caller is ANONYMOUS
    assert (call.arrival_ns, call.deadline_ns) == (START_NS, START_NS + 2 * NS_PER_S)


def test_an_answer_says_how_long_what_took_if_it_was_asked() -> None:
    said, _, wakes = answered(executed(200, 750, 5), message(timing=True))
    assert said == {"podium_queue_us": 200, "podium_execute_us": 550, "podium_batch_rows": 5, "podium_total_us": 900}
    assert wakes == 1
    for silent in (message(), message(timing=False)):
        assert answered(executed(200, 750, 5), silent)[0] == {}


def test_a_time_is_never_negative() -> None:
    said, _, _ = answered(executed(-3, 0, 1), message(timing=True))
    assert said["podium_queue_us"] == 0


def test_a_batch_that_goes_on_answering_has_only_a_total() -> None:
    ticket = executed(0, 0, 1)
    ticket.execution = None
    assert answered(ticket, message(timing=True))[0] == {"podium_total_us": 900}


FEATURES = SimpleNamespace(names=("delay", "rate"))


def test_an_answer_says_what_became_of_its_features_if_it_was_asked() -> None:
    replica = Replica(features=FEATURES)
    stale = np.array([[0, 0x83]], np.uint8)
    assert answered(executed(1, 2, 1), message(features=True), replica, stale)[0] == {
        "podium_features": '{"rate": ["DEFAULTED(STALE)"]}'
    }
    assert answered(executed(1, 2, 1), message(features=True), replica, 0 * stale)[0] == {"podium_features": "{}"}
    for silent in (message(), message(features=False)):
        assert answered(executed(1, 2, 1), silent, replica, stale)[0] == {}


def test_a_version_without_features_says_nothing_of_them() -> None:
    said, _, _ = answered(executed(200, 750, 5), message(timing=True, features=True))
    assert not [name for name in said if "feature" in name]


def test_an_answer_says_how_long_its_features_took() -> None:
    ticket = executed(200, 750, 5)
    assert ticket.execution is not None
    ticket.execution.features_ns = 300 * NS_PER_US
    said, _, _ = answered(ticket, message(timing=True), Replica(features=FEATURES), np.zeros((1, 2), np.uint8))
    assert said["podium_features_us"] == 300
    assert said["podium_execute_us"] == 550
    assert "podium_features" not in said


def test_a_hit_says_so_and_wakes_nobody() -> None:
    said, predict, wakes = answered(Hit({"y": ROWS}), message(timing=True), Replica(AnswerCache(1)))
    assert said == {"podium_cache_hit": True, "podium_total_us": 900}
    assert wakes == 0
    assert len(predict.remembered) == 1, "what to do with it is for the use case to say"
    assert answered(Hit({"y": ROWS}), message())[0] == {}


def test_the_answer_of_a_hit_comes_after_the_beginning() -> None:
    """Whoever begins a request may note it before its answer comes, hit or not."""

    async def main() -> None:
        predict: Any = Predict(Hit({"y": ROWS}), Replica())
        inference = Inference(predict, HandOver(lambda: None))
        replies: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
        for reply in replies:
            inference.begin(message(), Call(START_NS), reply)
        assert not any(reply.done() for reply in replies)
        replies[1].cancel()
        assert (await replies[0])["y"] is ROWS
        assert replies[1].cancelled()

    asyncio.run(main())


def test_only_what_could_be_encoded_is_remembered() -> None:
    async def main() -> None:
        replica: Any = Replica(AnswerCache(1))
        predict: Any = Predict(None, replica)
        inference = Inference(predict, HandOver(lambda: None))
        ticket = executed(1, 2, 1)
        request = InferRequest("m", "", "", (), (), START_NS)
        with pytest.raises(Exception, match="gave no output 'y'"):
            inference.encode(Pending(request, replica, ticket), {})
        assert predict.remembered == []
        inference.encode(Pending(request, replica, ticket), {"y": ROWS})
        assert len(predict.remembered) == 1

    asyncio.run(main())
