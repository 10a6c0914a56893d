"""What a running server has loaded is leased: a prune beside it takes nothing that serves."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from grpc import RpcError

from protos import grpc_service_pb2 as pb
from server.registry.keeping import Rules
from server.registry.lease import hold
from server.registry.prune import prune
from tests.server.models import QUICK, put_scaling
from tests.server.serving import Serving, until

FIRST = QUICK + '[versions]\npolicy = "specific"\nspecific = [1]\n'
RULES = Rules(newest=1, recent=timedelta(0))


@pytest.fixture
def explicit(tmp_path: Path) -> Iterator[Serving]:
    repository = tmp_path / "repository"
    repository.mkdir()
    for version in range(1, 7):
        put_scaling(repository, "m", version, FIRST)
    server = Serving(repository, tmp_path, control_mode="explicit", load_models=["m"])
    try:
        yield server
    finally:
        server.stop(errors=("loading failed",))


def pruned(serving: Serving) -> dict[int, tuple[str, ...]]:
    return {each.version: each.reasons for each in prune(serving.repository, "m", RULES, apply=True)}


def test_what_serves_is_not_pruned_until_it_is_unloaded(explicit: Serving) -> None:
    found = pruned(explicit)
    assert found[1] == ("leased by a running server",)
    assert [version for version, why in found.items() if not why] == [2, 3, 4, 5]
    with explicit.stub() as stub:
        assert stub.ModelReady(pb.ModelReadyRequest(name="m", version="1"), timeout=60).ready
        # a reload leases anew, and gives back the old one
        stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m"), timeout=60)
        assert pruned(explicit)[1] == ("leased by a running server",)
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m"), timeout=60)
        # an Unload is answered when the backend is closed
        until(lambda: pruned(explicit).get(1) is None, "version 1 is pruned")
    assert sorted(path.name for path in (explicit.repository / "m").glob("[0-9]*")) == ["6"]


def test_a_killed_server_leases_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    put_scaling(repository, "m", 1)
    server = Serving(repository, tmp_path)
    try:
        assert hold(repository / "m" / "1") is None
    finally:
        server.kill()
    held = hold(repository / "m" / "1")
    assert held is not None
    held.release()


def test_a_load_beside_a_prune_serves_or_fails_cleanly(explicit: Serving) -> None:
    """Version 1 is loaded while it is pruned, again and again."""
    with explicit.stub() as stub:
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m"), timeout=60)
        outcomes = set()
        for _ in range(10):
            if not (explicit.repository / "m" / "1").exists():
                put_scaling(explicit.repository, "m", 1, FIRST)
            start = threading.Barrier(2)

            def take(start: threading.Barrier = start) -> None:
                start.wait(60)
                prune(explicit.repository, "m", RULES, apply=True)

            pruner = threading.Thread(target=take)
            pruner.start()
            start.wait(60)
            try:
                stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m"), timeout=60)
                loaded = True
            except RpcError as error:
                assert "version 1 was removed" in str(error) or "no version is available" in str(error)  # noqa: PT017 - both may be
                loaded = False
            pruner.join(60)
            assert (explicit.repository / "m" / "1").is_dir() == loaded
            assert stub.ModelReady(pb.ModelReadyRequest(name="m", version="1"), timeout=60).ready == loaded
            outcomes.add(loaded)
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m"), timeout=60)
        assert outcomes
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=60).ready
