"""`tritonclient.grpc`, unchanged: every method of both of its clients, as the package offers them.

What has a test of its own is only touched here, so that no method is left out: datatypes, shapes and descriptions in
test_answers.py, streams in test_streams.py, shared memory and classes in test_shared_memory.py, models that are brought along
in test_given_files.py, trace and log settings in test_tracing.py and test_log_settings.py.
"""

import asyncio
import inspect
import json
import os
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc.auth import BasicAuth
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from tests.server.models import put_fake, put_identity, put_scaling, put_simple, scaling
from tests.server.serving import Serving, until
from tests.server.streaming import put_repeat

REGION = f"podium-client-{os.getpid()}"
ROW = np.arange(16, dtype=np.int32).reshape(1, 16)
CONFIG = json.dumps({"max_batch_size": 4})
HEADERS = {"my-header": "x", "podium-consumer": "tester"}


@pytest.fixture(scope="module")
def offering(tmp_path_factory: pytest.TempPathFactory, plane: str) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("offering")
    repository = home / "repository"
    repository.mkdir()
    put_simple(repository)
    put_scaling(repository, "scaling", 1)
    put_repeat(repository, "repeat")
    for datatype in ("BYTES", "BF16", "FP16"):
        put_identity(repository, datatype)
    put_fake(repository, "slow", 800_000.0, queue="early_drop = false\npriority_levels = 2\ndefault_priority = 2")
    trace = {"file": str(home / "traces.json")}
    server = Serving(
        repository,
        home,
        data_plane=plane,
        control_mode="explicit",
        load_models=["*"],
        allow_client_shm=True,
        libcudart="none here",
        trace=trace,
    )
    region = Path("/dev/shm", REGION)
    region.write_bytes(bytes(64))
    try:
        yield server
    finally:
        region.unlink()
        server.stop()


@pytest.fixture
def client(offering: Serving) -> Iterator[Any]:
    with triton.InferenceServerClient(offering.grpc_address) as client:
        yield client


def simple(module: Any = triton) -> list[Any]:
    inputs = [module.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for tensor in inputs:
        tensor.set_data_from_numpy(ROW)
    return inputs


def slow() -> list[Any]:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    return [tensor]


def repeat(times: int) -> list[Any]:
    tensor = triton.InferInput("IN", [1], "INT32")
    tensor.set_data_from_numpy(np.array([times], np.int32))
    return [tensor]


def told(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


METHODS: dict[str, tuple[tuple[Any, ...], dict[str, Any], Callable[[Any], bool]]] = {
    "is_server_live": ((), {}, lambda got: got is True),
    "is_server_ready": ((), {}, lambda got: got is True),
    "is_model_ready": (("simple", "1"), {}, lambda got: got is True),
    "get_server_metadata": ((), {"as_json": True}, lambda got: got["name"] == "triton"),
    "get_model_metadata": (("simple", "1"), {"as_json": True}, lambda got: got["versions"] == ["1"]),
    "get_model_config": (("simple", "1"), {"as_json": True}, lambda got: got["config"]["max_batch_size"] == 8),
    "get_model_repository_index": (
        (),
        {"as_json": True},
        lambda got: {"name": "simple", "version": "1", "state": "READY"} in got["models"],
    ),
    "get_inference_statistics": (
        ("simple", "1"),
        {"as_json": True},
        lambda got: [row["name"] for row in got["model_stats"]] == ["simple"],
    ),
    "load_model": (("scaling",), {}, lambda got: got is None),
    "unload_model": (("nobody",), {"unload_dependents": True}, lambda got: got is None),
    "get_trace_settings": (("simple",), {"as_json": True}, lambda got: got["settings"]["trace_level"]["value"] == ["OFF"]),
    "update_trace_settings": (
        ("simple", {"trace_rate": "7"}),
        {"as_json": True},
        lambda got: got["settings"]["trace_rate"]["value"] == ["7"],
    ),
    "get_log_settings": ((), {"as_json": True}, lambda got: got["settings"]["log_info"]["bool_param"]),
    "update_log_settings": (
        ({"log_warning": True},),
        {"as_json": True},
        lambda got: got["settings"]["log_warning"]["bool_param"],
    ),
    "register_system_shared_memory": ((REGION, "/" + REGION, 32), {"offset": 32}, lambda got: got is None),
    "get_system_shared_memory_status": (
        (REGION,),
        {"as_json": True},
        lambda got: got["regions"][REGION] == {"name": REGION, "key": "/" + REGION, "offset": "32", "byte_size": "32"},
    ),
    "unregister_system_shared_memory": ((REGION,), {}, lambda got: got is None),
    "get_cuda_shared_memory_status": ((), {"as_json": True}, lambda got: got == {}),
    "unregister_cuda_shared_memory": ((), {}, lambda got: got is None),
}
"""By name: arguments, and what is expected of the result. In this order: a region is asked for while it is there."""

ELSEWHERE = {
    *("infer", "async_infer", "start_stream", "stop_stream", "async_stream_infer", "stream_infer", "close"),
    *("register_plugin", "unregister_plugin", "plugin", "register_cuda_shared_memory"),
}


@pytest.mark.parametrize("module", [triton, triton_aio])
def test_no_method_is_left_out(module: Any) -> None:
    offered = {name for name, _ in inspect.getmembers(module.InferenceServerClient) if not name.startswith("_")}
    assert offered - METHODS.keys() - ELSEWHERE == set()


def test_every_method_with_headers_and_a_deadline(client: Any) -> None:
    for name, (arguments, options, expected) in METHODS.items():
        got = getattr(client, name)(*arguments, **options, headers=HEADERS, client_timeout=30)
        assert expected(got), (name, got)
    gone = told(lambda: client.get_system_shared_memory_status(REGION))
    assert gone == ("NOT_FOUND", f"Unable to find system shared memory region: '{REGION}'")


def test_every_method_of_the_asyncio_client(offering: Serving) -> None:
    async def main() -> None:
        async with triton_aio.InferenceServerClient(offering.grpc_address) as client:
            for name, (arguments, options, expected) in METHODS.items():
                got = await getattr(client, name)(*arguments, **options, headers=HEADERS, client_timeout=30)
                assert expected(got), (name, got)
            with pytest.raises(InferenceServerException, match="GPUs not supported"):
                await client.register_cuda_shared_memory("x", b"AAAA", 0, 8)

    asyncio.run(main())


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_infer_with_everything_it_takes(client: Any, algorithm: str | None) -> None:
    outputs = [triton.InferRequestedOutput("OUTPUT1"), triton.InferRequestedOutput("OUTPUT0", class_count=2)]
    result = client.infer(
        "simple",
        simple(),
        model_version="1",
        outputs=outputs,
        request_id="mine",
        priority=1,
        timeout=30_000_000,
        client_timeout=30,
        headers=HEADERS,
        compression_algorithm=algorithm,
        parameters={"text": "é", "number": 3, "flag": True, "podium_timing": True},
    )
    assert result.get_response().id == "mine"
    assert result.get_response().parameters["podium_total_us"].int64_param > 0
    assert (result.as_numpy("OUTPUT1") == 0).all()
    assert result.as_numpy("OUTPUT0").tolist() == [[b"30:15", b"28:14"]]
    assert result.as_numpy("none") is None
    as_json = result.get_response(as_json=True)
    assert [(each["name"], each["datatype"]) for each in as_json["outputs"]] == [("OUTPUT1", "INT32"), ("OUTPUT0", "BYTES")]


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "BYTES"])
def test_what_it_converts_itself(client: Any, datatype: str) -> None:
    """Text comes back as bytes. test_answers.py has all datatypes."""
    sent: Any = {
        "FP16": np.array([[1.5, -2.0]], np.float16),
        "BF16": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
        "BYTES": np.array([["a", "zwölf"]], np.object_),
    }[datatype]
    tensor = triton.InferInput("IN", [9], datatype)
    tensor.set_shape([1, 2])
    tensor.set_data_from_numpy(sent)
    assert (tensor.name(), tensor.datatype(), tensor.shape()) == ("IN", datatype, [1, 2])
    got = client.infer(f"identity_{datatype.lower()}", [tensor]).as_numpy("OUT")
    expected = [[b"a", "zwölf".encode()]] if datatype == "BYTES" else sent.tolist()
    assert got.tolist() == expected


def test_an_output_leaves_shared_memory_again(client: Any) -> None:
    handle = shm.create_shared_memory_region("own", f"/{REGION}-own", 64)
    try:
        client.register_system_shared_memory("own", f"/{REGION}-own", 64)
        output = triton.InferRequestedOutput("OUTPUT0")
        output.set_shared_memory("own", 64)
        answer = client.infer("simple", simple(), outputs=[output])
        assert answer.get_output("OUTPUT0").parameters["shared_memory_region"].string_param == "own"
        assert (shm.get_contents_as_numpy(handle, np.int32, [1, 16]) == 2 * ROW).all()
        output.unset_shared_memory()
        assert (client.infer("simple", simple(), outputs=[output]).as_numpy("OUTPUT0") == 2 * ROW).all()
    finally:
        client.unregister_system_shared_memory("own")
        shm.destroy_shared_memory_region(handle)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"sequence_id": 5, "sequence_start": True}, "sequence_(id|start)"),
        ({"sequence_id": "five", "sequence_end": True}, "sequence_(id|end)"),
    ],
)
def test_sequences_are_refused_by_name(client: Any, options: dict[str, Any], name: str) -> None:
    refused = f"^\\[StatusCode.UNIMPLEMENTED\\] parameter '{name}': sequence batching is not supported by this server$"
    with pytest.raises(InferenceServerException, match=refused):
        client.infer("simple", simple(), **options)
    results: Any = queue.SimpleQueue()
    client.start_stream(lambda result, error: results.put((result, error)))
    client.async_stream_infer("simple", simple(), **options)
    result, error = results.get(timeout=30)
    assert result is None
    assert "sequence batching is not supported" in error.message()
    # and the stream serves on
    client.async_stream_infer("simple", simple(), request_id="next")
    assert results.get(timeout=30)[0].get_response().id == "next"
    client.stop_stream()


def test_whoever_cancels_or_is_late_is_told_so_and_counted(client: Any) -> None:
    def failed() -> int:
        row = client.get_inference_statistics("slow").model_stats[0]
        return int(row.inference_stats.fail.count)

    before = failed()
    results: Any = queue.SimpleQueue()
    running = client.async_infer("slow", slow(), lambda result, error: results.put((result, error)))
    waiting = client.async_infer("slow", slow(), lambda result, error: results.put((result, error)), priority=1)
    assert told(lambda: client.infer("slow", slow(), timeout=1)) == ("UNAVAILABLE", "Request timeout expired")
    waiting.cancel()
    result, error = results.get(timeout=30)
    assert result is None
    assert (error.status(), error.message()) == ("StatusCode.CANCELLED", "Locally cancelled by application!")
    answered, error = results.get(timeout=30)
    assert error is None
    assert (answered.as_numpy("echo_x") == 1).all()
    assert running is not None
    until(lambda: failed() == before + 2, "the late and the cancelled one are counted")


def test_one_stream_with_answers_of_every_kind(client: Any) -> None:
    results: Any = queue.SimpleQueue()
    client.start_stream(lambda result, error: results.put((result, error)), headers=HEADERS, compression_algorithm="gzip")
    client.async_stream_infer(
        "repeat",
        repeat(2),
        request_id="many",
        enable_empty_final_response=True,
        priority=1,
        timeout=30_000_000,
        parameters={"x": 1},
    )
    client.async_stream_infer("simple", simple(), request_id="one", outputs=[triton.InferRequestedOutput("OUTPUT0")])
    got = [results.get(timeout=30) for _ in range(4)]
    assert [error for _, error in got] == [None] * 4
    assert sorted(result.get_response().id for result, _ in got) == ["many", "many", "many", "one"]
    (one,) = [result for result, _ in got if result.get_response().id == "one"]
    assert (one.as_numpy("OUTPUT0") == 2 * ROW).all()
    with pytest.raises(InferenceServerException, match="cannot start another stream"):
        client.start_stream(results.put)
    client.stop_stream(cancel_requests=True)


def test_the_asyncio_client_is_cancelled_and_streams(offering: Serving) -> None:
    async def main() -> None:
        async with triton_aio.InferenceServerClient(offering.grpc_address) as client:
            call = asyncio.create_task(client.infer("slow", slow(), client_timeout=60))
            await client.is_server_live()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            answer = await client.infer("simple", simple(triton_aio), headers=HEADERS, compression_algorithm="deflate")
            assert (answer.as_numpy("OUTPUT0") == 2 * ROW).all()

            async def requests() -> Any:
                yield {"model_name": "simple", "inputs": simple(triton_aio), "request_id": "a"}
                yield {"model_name": "repeat", "inputs": repeat(1_000_000), "request_id": "b"}
                await asyncio.Event().wait()  # a caller that would go on

            stream = client.stream_infer(requests(), headers=HEADERS, stream_timeout=60)
            seen = set()
            async for result, error in stream:
                assert error is None
                seen.add(result.get_response().id)
                if seen == {"a", "b"}:
                    break
            assert stream.cancel()
            answer = await client.infer("simple", simple(triton_aio), client_timeout=60)
            assert (answer.as_numpy("OUTPUT0") == 2 * ROW).all()

    asyncio.run(main())


def test_models_with_a_configuration_and_with_files(client: Any) -> None:
    client.load_model("simple", config=CONFIG)
    assert client.get_model_config("simple", as_json=True)["config"]["max_batch_size"] == 4
    client.load_model("simple")
    assert client.get_model_config("simple", as_json=True)["config"]["max_batch_size"] == 8
    client.load_model("brought", config="{}", files={"file:1/model.onnx": scaling(3.0)})
    assert client.is_model_ready("brought", "1")
    client.unload_model("brought")
    assert not client.is_model_ready("brought")


def test_a_plugin_adds_its_header(client: Any) -> None:
    """Its header is sent with every call: a server without rules does not look at it."""
    plugin = BasicAuth("user", "password")
    client.register_plugin(plugin)
    assert client.plugin() is plugin
    assert client.is_server_ready()
    client.unregister_plugin()
    assert client.plugin() is None
