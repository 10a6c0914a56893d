"""Models that callers bring along: `load_model(..., files=...)` of tritonclient against a server in explicit mode."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from server.registry.names import MEASURED_FOLDER
from tests.server.models import put_scaling, scaling
from tests.server.serving import Serving

GARBAGE = {"file:1/model.onnx": b"no model"}
ALL = json.dumps({"version_policy": {"all": {}}})


def start(home: Path) -> tuple[Serving, Path]:
    """A server of its own, and the folder where its temporary files go."""
    repository, temporary = home / "repository", home / "temporary"
    repository.mkdir()
    temporary.mkdir()
    put_scaling(repository, "known", 1)
    put_scaling(repository, "known", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        return Serving(repository, home, control_mode="explicit"), temporary


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Path]]:
    server, temporary = start(tmp_path_factory.mktemp("given"))
    try:
        yield server, temporary
    finally:
        server.stop()


@pytest.fixture
def temporary(started: tuple[Serving, Path]) -> Path:
    return started[1]


@pytest.fixture
def client(started: tuple[Serving, Path]) -> Iterator[Any]:
    with triton.InferenceServerClient(started[0].grpc_address) as client:
        yield client
        for name in ("known", "brought"):
            client.unload_model(name)
    assert given(started[1]) == []


def given(temporary: Path) -> list[str]:
    return sorted(path.name for path in temporary.iterdir() if path.name.startswith("podium-given-"))


def answer(client: Any, model: str, version: str = "") -> tuple[str, float]:
    """Which version answers, and the factor of the file it was made from."""
    x = triton.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.array([[3]], np.float32))
    result = client.infer(model, [x], model_version=version)
    factor = float(result.as_numpy("made_by")[0, 0])
    assert result.as_numpy("y")[0, 0] == 3 * factor
    return result.get_response().model_version, factor


def rows(client: Any, model: str) -> list[tuple[str, str]]:
    return [(row.version, row.state) for row in client.get_model_repository_index().models if row.name == model]


def refused(client: Any, model: str, files: dict[str, bytes], config: str | None = "{}") -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as raised:
        client.load_model(model, config=config, files=files)
    return raised.value.status().removeprefix("StatusCode."), raised.value.message()


def test_a_model_the_repository_does_not_know(client: Any, temporary: Path) -> None:
    client.load_model("brought", config="{}", files={"file:1/model.onnx": scaling(7.0)})
    assert answer(client, "brought") == ("1", 7)
    assert rows(client, "brought") == [("1", "READY")]
    assert len(given(temporary)) == 1
    files = {"file:3/model.onnx": scaling(9.0), "file:12/model.onnx": scaling(10.0)}
    client.load_model("brought", config=ALL, files=files)
    assert [answer(client, "brought", version) for version in ("", "3", "12")] == [("12", 10), ("3", 9), ("12", 10)]
    assert rows(client, "brought") == [("3", "READY"), ("12", "READY")]
    assert not client.is_model_ready("brought", "1")
    assert len(given(temporary)) == 1
    client.unload_model("brought")
    assert not client.is_model_ready("brought")
    assert given(temporary) == []


def contents(repository: Path) -> list[tuple[str, int]]:
    """Everything but what loads have measured."""
    paths = [path for path in repository.rglob("*") if MEASURED_FOLDER not in path.parts]
    return sorted((str(path), path.stat().st_mtime_ns if path.is_file() else 0) for path in paths)


def test_an_override_and_the_way_back(client: Any, temporary: Path, started: tuple[Serving, Path]) -> None:
    repository = started[0].repository
    before = contents(repository)
    client.load_model("known")
    assert answer(client, "known") == ("2", 2)
    client.load_model("known", config=json.dumps({"max_batch_size": 5}), files={"file:1/model.onnx": scaling(7.0)})
    assert answer(client, "known") == ("1", 7)
    assert rows(client, "known") == [("1", "READY"), ("2", "UNAVAILABLE")]
    assert client.get_model_config("known").config.max_batch_size == 5
    client.load_model("known")
    assert answer(client, "known") == ("2", 2)
    assert ("2", "READY") in rows(client, "known")
    assert given(temporary) == []
    assert contents(repository) == before


def test_garbage_takes_nothing_away(client: Any, temporary: Path) -> None:
    code, text = refused(client, "brought", GARBAGE)
    assert code == "INTERNAL"
    assert text.startswith("load failed for model 'brought': version 1 is at UNAVAILABLE state: open: model.onnx: ")
    assert str(temporary) not in text
    assert rows(client, "brought") == [("1", "UNAVAILABLE")]
    assert given(temporary) == []
    client.load_model("known")
    for version in (1, 2, 3):
        code, text = refused(client, "known", {f"file:{version}/model.onnx": b"no model"})
        assert (code, text[: len("load failed")]) == ("INTERNAL", "load failed")
        assert answer(client, "known") == ("2", 2)
        assert given(temporary) == []
    client.load_model("known", config="{}", files={"file:1/model.onnx": scaling(7.0)})
    assert refused(client, "known", GARBAGE)[0] == "INTERNAL"
    assert answer(client, "known") == ("1", 7)
    assert len(given(temporary)) == 1


def test_what_is_no_model_is_refused_before_anything_is_written(client: Any, temporary: Path) -> None:
    model = scaling(7.0)
    for path in ("../1/model.onnx", "1/../../model.onnx", "/1/model.onnx", "1//model.onnx"):
        code, text = refused(client, "brought", {f"file:{path}": model})
        assert code == "INVALID_ARGUMENT"
        assert text.startswith(f"Invalid file parameter 'file:{path}' must stay within model directory")
    assert refused(client, "brought", {"file:model.onnx": model})[0] == "INVALID_ARGUMENT"
    assert refused(client, "../brought", {"file:1/model.onnx": model})[0] == "INVALID_ARGUMENT"
    missing = "Load parameter 'config' must be specified for model file override"
    assert refused(client, "brought", {"file:1/model.onnx": model}, None) == ("INVALID_ARGUMENT", missing)
    assert refused(client, "brought", {"1/model.onnx": model}) == (
        "INVALID_ARGUMENT",
        "unrecognized load parameter '1/model.onnx'.",
    )
    assert rows(client, "brought") == []
    assert given(temporary) == []


def test_nothing_is_left_when_the_server_leaves(tmp_path: Path) -> None:
    server, temporary = start(tmp_path)
    try:
        with triton.InferenceServerClient(server.grpc_address) as client:
            client.load_model("brought", config="{}", files={"file:1/model.onnx": scaling(7.0)})
            assert len(given(temporary)) == 1
    finally:
        server.stop()
    assert given(temporary) == []
