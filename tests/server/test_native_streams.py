"""The same streams to a server of each plane: what callers are told is the same, message by message."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as client

from protos import grpc_service_pb2 as pb
from tests.planes import PLANES
from tests.server.models import put_fake
from tests.server.serving import Serving, counts, infer_message
from tests.server.streaming import ROW, asked, echo, put_repeat

PLAIN, ODD = 40, 8
"""How many of a mixed stream's messages are of one kind in a row."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Serving]]:
    started: list[Serving] = []
    try:
        for kind in PLANES:
            home = tmp_path_factory.mktemp(kind)
            repository = home / "repository"
            repository.mkdir()
            put_fake(repository, "echo", 200.0, max_batch=16)
            put_fake(repository, "slow", 100_000.0, queue="early_drop = false")
            put_repeat(repository, "repeat")
            started.append(Serving(repository, home, data_plane=kind, max_stream_requests=20))
        yield started
    finally:
        for server in started:
            server.stop()


def with_parameters(name: str, model: str = "echo", **parameters: Any) -> pb.ModelInferRequest:
    message = echo(name, model)
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(message.parameters[key], kind, value)
    return message


def plain(round_: int) -> list[pb.ModelInferRequest]:
    """Those that the fast lane takes."""
    chosen = echo(f"chosen {round_}")
    chosen.outputs.add(name="echo_x")
    typed = echo(f"typed {round_}")
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.fp32_contents.extend([1.0, 2.0, 3.0, 4.0])
    return [
        echo(f"first {round_}"),
        echo(f"slow {round_}", "slow"),
        infer_message("echo", ROW, id="größer", model_version="1"),
        infer_message("echo", ROW),
        chosen,
        typed,
        with_parameters(f"timed {round_}", podium_timing=True),
        with_parameters(f"final {round_}", triton_enable_empty_final_response=True, priority=1),
        *(echo(f"{round_} {number}") for number in range(PLAIN)),
    ]


def odd(round_: int) -> list[pb.ModelInferRequest]:
    """Those that are Python's."""
    unfit = infer_message("echo", {"x": ("INT32", [1, 4], bytes(16))}, id=f"unfit {round_}")
    return [
        echo(f"nobody {round_}", "nobody"),
        infer_message("echo", ROW, id=f"version {round_}", model_version="9"),
        unfit,
        with_parameters(f"negative {round_}", timeout=-1),
        asked(3, id=f"many {round_}", empty_final=True),
        pb.ModelInferRequest(),
        *(echo(f"after {round_} {number}") for number in range(ODD)),
    ]


def without_times(message: pb.ModelStreamInferResponse) -> pb.ModelStreamInferResponse:
    for name, value in message.infer_response.parameters.items():
        if name.startswith("podium_"):
            value.int64_param = 0
    return message


def answers(server: Serving, *messages: pb.ModelInferRequest) -> dict[bool, list[pb.ModelStreamInferResponse]]:
    """All of them in their order, those of the decoupled model by themselves."""
    got: dict[bool, list[pb.ModelStreamInferResponse]] = {False: [], True: []}
    with server.stub() as stub:
        for message in stub.ModelStreamInfer(iter(messages), timeout=60):
            got[message.infer_response.id.startswith("many")].append(without_times(message))
    return got


@pytest.mark.parametrize(
    "rounds",
    [(plain,), (odd,), (plain, odd, plain), (odd, plain, odd)],
    ids=["plain", "odd", "plain first", "odd first"],
)
def test_both_planes_say_the_same(both: list[Serving], rounds: tuple[Any, ...]) -> None:
    messages = [message for number, make in enumerate(rounds) for message in make(number)]
    first, *others = [answers(server, *messages) for server in both]
    expected = [message.id for message in messages if not message.id.startswith("many")]
    assert [each.infer_response.id for each in first[False]] == expected
    for other in others:
        assert other == first


def test_both_planes_count_the_same(both: list[Serving]) -> None:
    counted = []
    for server in both:
        with server.stub() as stub:
            before = counts(stub, "echo")
            answers(server, *plain(0), *odd(1))
            counted.append([after - earlier for after, earlier in zip(counts(stub, "echo")[:3], before[:3], strict=True)])
    assert all(each == counted[0] for each in counted)
    assert counted[0][0] == 5 + 2 + PLAIN + ODD


def test_tritons_client_cannot_tell(both: list[Serving]) -> None:
    """Its callback gets the same results and errors, in the same order."""
    got = []
    for server in both:
        told: list[Any] = []
        with client.InferenceServerClient(server.grpc_address) as triton:
            triton.start_stream(callback=lambda result, error, told=told: told.append((result, error)))
            for number in range(100):
                tensor = client.InferInput("x", [1, 4], "FP32")
                tensor.set_data_from_numpy(np.full((1, 4), number, np.float32))
                model = "nobody" if number == 60 else "echo"
                triton.async_stream_infer(model, [tensor], request_id=str(number), outputs=None)
            triton.stop_stream()
        got.append([result.get_response() if error is None else str(error) for result, error in told])
    assert all(each == got[0] for each in got)
    assert len(got[0]) == 100
