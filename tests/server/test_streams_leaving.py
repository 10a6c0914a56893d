"""Streams of a server that leaves, or whose models are changed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos import grpc_service_pb2 as pb
from tests.server.models import put_fake
from tests.server.serving import Serving, until
from tests.server.streaming import LEAVING, MANY, Open, asked, echo, put_repeat, said, waiting, whole


@pytest.fixture
def leaving(tmp_path: Path, plane: str) -> Iterator[Callable[..., Serving]]:
    """A server for one test, which ends it itself."""
    repository = tmp_path / "repository"
    repository.mkdir()
    put_fake(repository, "echo", 200.0, max_batch=16)
    put_fake(repository, "slow", 1_000_000.0)
    put_repeat(repository, "repeat", 20_000.0)
    started: list[Serving] = []

    def start(**settings: Any) -> Serving:
        started.append(Serving(repository, tmp_path, data_plane=plane, **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def test_idle_streams_do_not_keep_a_server_that_leaves(leaving: Callable[..., Serving]) -> None:
    server = leaving(drain_grace_s=300.0)
    with server.stub() as stub:
        used, unused = Open(stub), Open(stub)
        used.send(echo("a"))
        assert said(next(used.call)) == "a"
        server.terminate()
        for stream in (used, unused):
            with pytest.raises(grpc.RpcError) as told:
                next(stream.call)
            assert told.value.code() is grpc.StatusCode.UNAVAILABLE
            stream.half_close()
        assert server.wait() == 0


def test_a_server_that_leaves_answers_what_it_has_read(leaving: Callable[..., Serving]) -> None:
    server = leaving(drain_grace_s=300.0)
    with server.stub() as stub:
        stream = Open(stub)
        stream.send(asked(40, id="p", empty_final=True), echo("a", "slow"), echo("b"))
        assert said(next(stream.call)) == "p+"
        until(lambda: waiting(server) == 2, "both others wait")
        server.terminate()
        got: list[str] = []
        with pytest.raises(grpc.RpcError) as told:
            got.extend(map(said, stream.call))
        assert (told.value.code().name, told.value.details()) == ("UNAVAILABLE", LEAVING)
        stream.half_close()
        assert server.wait() == 0
    assert got.count("p+") == 39
    assert [each for each in got if each in ("p.", "a", "b")] == ["p.", "a", "b"]


def test_grace_has_an_end_for_streams_too(leaving: Callable[..., Serving]) -> None:
    server = leaving(drain_grace_s=0.1)
    with server.stub() as stub:
        stream = Open(stub)
        stream.send(asked(MANY))
        assert said(next(stream.call)) == "+"
        server.terminate()
        with pytest.raises(grpc.RpcError):
            list(stream.call)
        stream.half_close()
        assert server.wait() == 0


def test_a_load_makes_a_model_decoupled(leaving: Callable[..., Serving]) -> None:
    server = leaving(control_mode="explicit", load_models=["echo"])
    with server.stub() as stub:

        def load(config: dict[str, Any]) -> None:
            message = pb.RepositoryModelLoadRequest(model_name="echo")
            message.parameters["config"].string_param = json.dumps(config)
            stub.RepositoryModelLoad(message)

        load({"model_transaction_policy": {"decoupled": True}})
        assert whole(stub, echo("a")) == ["a+"]
        load({"model_transaction_policy": {"decoupled": False}})
        assert whole(stub, echo("a")) == ["a"]
