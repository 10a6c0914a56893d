"""The device ledger, seen from outside: a device without a GPU fills up, empties, and is told of in numbers."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos import grpc_service_pb2 as pb
from tests.server.models import FAKE, put
from tests.server.scrape import scrape, value
from tests.server.serving import Serving, infer_message, refusal, until

MIB = 2**20
TOTAL = 1000 * MIB
BUDGET = 950 * MIB
PATIENCE_US = 3_000_000


def settings_of(weights_mib: int, row_mib: int = 0, batching: str = "", **fake: Any) -> str:
    """A version on the one device of these tests, which has `TOTAL` bytes."""
    memory = {"device_bytes": TOTAL, "weights_bytes": weights_mib * MIB, "row_bytes": row_mib * MIB, "t0_us": 100.0}
    lines = [f"{name} = {json.dumps(each)}" for name, each in (memory | {"row_us": 0.0} | fake).items()]
    return "\n".join(
        ["max_batch = 8", "[warmup]", "runs = 1", "[batching]", batching, "[fake]", 'device = "accelerator"', *lines, ""]
    )


def put_heavy(repository: Path, name: str, weights_mib: int, row_mib: int = 0, batching: str = "", **fake: Any) -> None:
    put(repository, name, 1, {"fake.json": json.dumps(FAKE).encode()}, settings_of(weights_mib, row_mib, batching, **fake))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "repository").mkdir()
    for name, weights_mib in (("half", 500), ("less", 400), ("more", 600)):
        put_heavy(tmp_path / "repository", name, weights_mib)
    return tmp_path


@pytest.fixture
def explicit(home: Path, plane: str) -> Iterator[Serving]:
    server = Serving(home / "repository", home, data_plane=plane, control_mode="explicit")
    try:
        yield server
    finally:
        server.stop()


def load(stub: Any, name: str) -> None:
    stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=name), timeout=60)


def unload(stub: Any, name: str) -> None:
    stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=name), timeout=60)


def message(name: str, rows: int = 1) -> pb.ModelInferRequest:
    sent = np.arange(rows * 4, dtype=np.float32)
    return infer_message(name, {"x": ("FP32", [rows, 4], sent.tobytes())})


def answered(stub: Any, name: str, rows: int = 1) -> bool:
    """A whole and correct answer, or one for want of memory."""
    asked = message(name, rows)
    try:
        answer = stub.ModelInfer(asked, timeout=60)
    except grpc.RpcError as error:
        failed = (error.code(), str(error.details()))
    else:
        assert answer.raw_output_contents[0] == asked.raw_input_contents[0]
        return True
    assert failed[0] is grpc.StatusCode.UNAVAILABLE, failed
    assert "fake:0 is out of memory" in failed[1]
    return False


def reason(stub: Any, name: str) -> tuple[str, str]:
    (row,) = (row for row in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models if row.name == name)
    return row.state, row.reason


def reserved(serving: Serving) -> dict[str, float]:
    """MiB by model."""
    page = scrape(serving)
    return {
        dict(labels)["model"]: held / MIB for (name, labels), held in page.items() if name == "podium_device_reserved_bytes"
    }


def test_what_does_not_fit_is_refused_with_numbers_and_fits_once_there_is_room(explicit: Serving) -> None:
    with explicit.stub() as stub:
        load(stub, "half")
        load(stub, "less")
        assert reserved(explicit) == {"half": 500, "less": 400}
        code, text = refusal(lambda: load(stub, "more"))
        expected = (
            f"reserve memory: fake:0 has no room for it: it needs 600.0 MiB ({600 * MIB} bytes) (as [fake] of its settings"
            f" says, with its largest batch), and 50.0 MiB ({50 * MIB} bytes) of the budget of 950.0 MiB ({BUDGET} bytes)"
            f" (of 1000.0 MiB ({TOTAL} bytes) in all) are free; held by: half:1 500.0 MiB ({500 * MIB} bytes), less:1 400.0 MiB"
            f" ({400 * MIB} bytes)"
        )
        assert code == "INTERNAL"
        assert expected in text
        assert reason(stub, "more") == ("UNAVAILABLE", expected)
        assert answered(stub, "half")
        unload(stub, "half")
        assert reason(stub, "half") == ("UNAVAILABLE", "unloaded")
        assert refusal(lambda: load(stub, "more"))[0] == "INTERNAL"
        unload(stub, "less")
        load(stub, "more")
        assert answered(stub, "more")
    page = scrape(explicit)
    assert reserved(explicit) == {"more": 600}
    assert value(page, "podium_device_measured_bytes", model="more", version="1", device="fake:0") == 600 * MIB
    assert value(page, "podium_device_budget_bytes", device="fake:0") == BUDGET
    assert value(page, "podium_device_unreturned_bytes_total", device="fake:0") == 0


def test_a_reload_that_does_not_fit_twice_leaves_the_old_form_serving(explicit: Serving) -> None:
    with explicit.stub() as stub:
        load(stub, "more")
        settings = explicit.repository / "more" / "model.toml"
        settings.write_text(settings_of(600, t0_us=200.0))
        _, text = refusal(lambda: load(stub, "more"))
        assert "a reload needs room for both: it would fit once the more:1 that is in memory has been unloaded" in text
        assert reason(stub, "more")[0] == "READY"
        assert answered(stub, "more")
        assert reserved(explicit) == {"more": 600}
        unload(stub, "more")
        load(stub, "more")
        assert answered(stub, "more")
        # what fits twice is held once again afterwards
        unload(stub, "more")
        load(stub, "less")
        (explicit.repository / "less" / "model.toml").write_text(settings_of(400, t0_us=200.0))
        load(stub, "less")
        assert answered(stub, "less")
        until(lambda: reserved(explicit) == {"less": 400}, "the old form to be closed")


def test_a_batch_that_is_too_large_for_what_is_left_is_halved_once_and_fails_alone(explicit: Serving) -> None:
    full = f"max_queue_delay_us = {PATIENCE_US}"
    put_heavy(explicit.repository, "wide", 300, 50, full)
    put_heavy(explicit.repository, "filler", 150)

    def at_once(stub: Any, *rows: int) -> list[bool]:
        """As many rows as make a batch full: it is released with all of them."""
        assert sum(rows) == 8
        with ThreadPoolExecutor(len(rows)) as callers:
            return list(callers.map(lambda each: answered(stub, "wide", each), rows))

    with explicit.stub() as stub:
        load(stub, "wide")
        assert at_once(stub, 4, 4) == [True, True], "700 MiB are free"
        load(stub, "less")
        assert at_once(stub, 4, 4) == [True, True], "300 MiB are free: enough for either half"
        assert answered(stub, "less")
        load(stub, "filler")
        assert at_once(stub, *[1] * 8) == [False] * 8, "150 MiB are free: for 3 rows, but a half is not halved again"
        assert answered(stub, "less")
        assert answered(stub, "filler")
        assert answered(stub, "wide"), "a row by itself fits"
        unload(stub, "filler")
        assert at_once(stub, 4, 4) == [True, True]
        assert [reason(stub, name)[0] for name in ("wide", "less")] == ["READY", "READY"]


def test_what_was_measured_is_known_to_the_next_server(home: Path, plane: str) -> None:
    """The settings promise 400 MiB for 8 rows; 0 of them are held while nothing executes."""
    put_heavy(home / "repository", "wide", 300, 50)

    def serve(ratio: float) -> Serving:
        return Serving(home / "repository", home, data_plane=plane, control_mode="explicit", device_memory_budget_ratio=ratio)

    server = serve(0.6)
    try:
        with server.stub() as stub:
            assert "needs 700.0 MiB" in refusal(lambda: load(stub, "wide"))[1]
    finally:
        server.stop()
    server = serve(0.95)
    try:
        with server.stub() as stub:
            load(stub, "wide")
    finally:
        server.stop()
    document = json.loads((home / "repository" / "wide" / ".measured" / "1" / "fake-accelerator.fake.json").read_text())
    assert document["memory_bytes"] == 300 * MIB
    assert list(document["costs_ns"]) == ["1", "2", "4", "8"]
    server = serve(0.6)
    try:
        with server.stub() as stub:
            load(stub, "wide")
            _, text = refusal(lambda: load(stub, "less"))
            assert "held by: wide:1 300.0 MiB" in text
    finally:
        server.stop()
    server = serve(0.2)
    try:
        with server.stub() as stub:
            assert (
                "needs 300.0 MiB (314572800 bytes) (measured on fake accelerator on" in refusal(lambda: load(stub, "wide"))[1]
            )
    finally:
        server.stop()


def test_what_a_load_keeps_starts_no_other_load(home: Path, plane: str) -> None:
    repository = home / "repository"
    for name in ("half", "more"):
        (repository / name / "model.toml").write_text(settings_of(1))
    server = Serving(repository, home, data_plane=plane, rescan_s=0.1)
    try:
        with server.stub() as stub:
            for number in range(3):
                put_heavy(repository, f"later_{number}", 1, measured="../half/.measured/1/fake-accelerator.fake.json")
                until(lambda number=number: reason_or_none(stub, f"later_{number}") == "READY", "a later model")  # type: ignore[misc]
                assert answered(stub, f"later_{number}")
        page = scrape(server)
        loads = {dict(labels)["model"]: count for (name, labels), count in page.items() if name == "podium_loads_total"}
        assert loads == dict.fromkeys(["half", "less", "more", *(f"later_{number}" for number in range(3))], 1)
        assert len(list(repository.glob("*/.measured/1/fake-accelerator.fake.json"))) == 6
    finally:
        server.stop()


def reason_or_none(stub: Any, name: str) -> str:
    rows = [row.state for row in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models if row.name == name]
    return rows[0] if rows else ""


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_repository_that_cannot_be_written_is_served(home: Path, plane: str, elsewhere: bool) -> None:
    repository, kept = home / "repository", home / "kept"
    # in the way of the folder, so that it cannot be made even by a user whom no mode keeps out
    (repository / "half" / ".measured").write_bytes(b"")
    settings: dict[str, Any] = {"measured_dir": str(kept)} if elsewhere else {}
    server = Serving(repository, home, data_plane=plane, control_mode="explicit", load_models=["half"], **settings)
    try:
        with server.stub() as stub:
            assert answered(stub, "half")
    finally:
        server.stop()
    written = [path.relative_to(home) for path in home.rglob("*.fake.json")]
    assert written == ([Path("kept/half/1/fake-accelerator.fake.json")] if elsewhere else [])
