"""A server that monitors itself, on both planes: what is sampled, what a shift is called, and what outlives a restart."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from protos import grpc_service_pb2 as inference
from protos import monitoring_pb2 as pb
from protos.monitoring_pb2_grpc import MonitoringServiceStub
from tests.server.models import put_fake
from tests.server.scrape import scrape, value
from tests.server.serving import Serving, infer_message, until

ROWS = 50
SETTINGS = """early_drop = false
[monitoring]
rate = 1.0
window_s = 1
grace_s = 0.2
learning_rows = 2000
redact = ["secret"]
[monitoring.quality]
kind = "regression"
[[validation.inputs]]
name = "x"
at_most = 1e6
"""


@contextmanager
def served(home: Path, plane: str, **monitoring: Any) -> Iterator[Serving]:
    repository = home / "repository"
    if not repository.exists():
        repository.mkdir()
        put_fake(repository, "watched", 100.0, max_batch=64, queue=SETTINGS)
        put_fake(repository, "other", 100.0, max_batch=64, queue="early_drop = false\n[monitoring]\nenabled = false\n")
    server = Serving(repository, home, data_plane=plane, monitoring=monitoring)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def monitoring(server: Serving) -> Iterator[MonitoringServiceStub]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield MonitoringServiceStub(channel)


class Caller:
    """Sends rows, and counts them."""

    def __init__(self, server: Serving) -> None:
        self.server = server
        self.rng = np.random.default_rng(1)
        self.rows = 0

    def send(self, calls: int, shift: float = 0.0, model: str = "watched") -> None:
        with self.server.stub() as stub:
            for _ in range(calls):
                rows = self.rng.normal(size=(ROWS, 4)).astype(np.float32)
                rows[:, 2] += shift
                name = f"call-{self.rows}"
                stub.ModelInfer(infer_message(model, {"x": ("FP32", [ROWS, 4], rows.tobytes())}, id=name))
                self.rows += ROWS


def state_of(server: Serving) -> str:
    page = scrape(server)
    found = [dict(labels)["state"] for (name, labels), on in page.items() if name == "podium_drift_state" and on]
    return found[0] if found else ""


def test_a_shift_is_learnt_against_seen_named_and_kept(tmp_path: Path, plane: str) -> None:
    state, event = tmp_path / "state", tmp_path / "event.json"
    keep = f"import sys, pathlib; pathlib.Path({str(event)!r}).write_bytes(sys.stdin.buffer.read())"
    with served(tmp_path, plane, dir=str(state), retrain={"command": [sys.executable, "-c", keep]}) as server:
        caller = Caller(server)
        caller.send(1)
        until(lambda: state_of(server) == "learning", "it learns")
        caller.send(60)

        def until_state(state: str, shift: float) -> None:
            def reached() -> bool:
                caller.send(4, shift)
                return state_of(server) == state

            until(reached, state)

        until_state("ok", 0.0)
        until_state("alarm", 1.5)
        with monitoring(server) as stub:
            report = stub.GetDrift(pb.DriftRequest(model_name="watched", windows=5))
        (version,) = report.versions
        assert (version.model_name, version.model_version, version.arm, version.state) == ("watched", "1", "champion", "alarm")
        alarmed = next(window for window in version.windows if window.alarmed)
        assert "x[2]:distribution" in alarmed.alarmed
        assert not {f"x[{other}]:distribution" for other in (0, 1, 3)} & set(alarmed.alarmed)
        # whoever trains is told, once
        until(lambda: event.exists() and event.read_bytes(), "an event")
        asked = json.loads(event.read_bytes())
        assert (asked["data"]["model"], asked["data"]["reason"]) == ("watched", "drift")
        page = scrape(server)
        assert value(page, "podium_retrain_events_total", model="watched", reason="drift", result="raised") == 1
        # refused, cancelled and remembered answers apart, every row that was answered was chosen, and none was lost
        until(
            lambda: value(scrape(server), "podium_sample_written_total", sink="process") == caller.rows, "all rows are counted"
        )
        page = scrape(server)
        assert value(page, "podium_sampled_rows_total", model="watched", version="1", arm="champion") == caller.rows
    with served(tmp_path, plane, dir=str(state)) as server, monitoring(server) as stub:
        (again,) = stub.GetDrift(pb.DriftRequest(model_name="watched", windows=300)).versions
        assert alarmed in again.windows
        assert again.learning_rows == 2000
        assert [window.start_us for window in again.windows] == sorted((w.start_us for w in again.windows), reverse=True)


def test_the_command_shows_and_recomputes_what_a_server_found(tmp_path: Path, plane: str) -> None:
    with served(tmp_path, plane) as server:
        caller = Caller(server)

        def judged() -> bool:
            caller.send(10)
            return state_of(server) == "ok"

        until(judged, "a window is judged")
        command = [sys.executable, "-m", "server", "drift", "watched", "--server", server.grpc_address]
        shown = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=60)
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)
        again = subprocess.run([*command, "--recompute"], capture_output=True, text=True, check=False, timeout=60)
        assert again.returncode == 0, again.stdout + again.stderr


def test_outcomes_are_joined_by_the_ids_of_requests(tmp_path: Path, plane: str) -> None:
    with served(tmp_path, plane) as server, monitoring(server) as stub:
        caller = Caller(server)
        caller.send(2)
        outcome = pb.Outcome(model_name="watched", prediction_id="call-50", row=7, value=3.0)
        first = stub.ReportOutcome(outcome)
        assert first.status == pb.OutcomeReceipt.ACCEPTED
        outcomes = [
            outcome,
            pb.Outcome(model_name="watched", prediction_id="call-0", row=49, value=1.0),
            pb.Outcome(model_name="watched", prediction_id="call-0", row=49, value=float("nan")),
            pb.Outcome(model_name="nobody", prediction_id="call-0", value=1.0),
        ]
        receipts = list(stub.ReportOutcomes(iter(outcomes)))
        assert [each.status for each in receipts[2:]] == [pb.OutcomeReceipt.INVALID] * 2
        assert receipts[0].status in (pb.OutcomeReceipt.DUPLICATE, pb.OutcomeReceipt.LATE)
        assert receipts[1].status == pb.OutcomeReceipt.ACCEPTED

        def labelled() -> bool:
            report = stub.GetDrift(pb.DriftRequest(model_name="watched"))
            return bool(report.versions[0].quality.labelled == 2)

        until(labelled, "both outcomes are joined")
        with pytest.raises(grpc.RpcError) as refused:
            stub.ReportOutcome(pb.Outcome(model_name="other", prediction_id="a", value=1.0))
        assert "have no [monitoring.quality]" in str(refused.value.details())


def test_who_is_refused_is_no_sample_and_what_is_off_is_not_sampled(tmp_path: Path, plane: str) -> None:
    with served(tmp_path, plane) as server:
        caller = Caller(server)
        with server.stub() as stub:
            rows = np.full((3, 4), 2e6, np.float32)
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(infer_message("watched", {"x": ("FP32", [3, 4], rows.tobytes())}, id="bad"))
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            other = infer_message("other", {"x": ("FP32", [3, 4], np.zeros((3, 4), np.float32).tobytes())})
            assert isinstance(stub.ModelInfer(other), inference.ModelInferResponse)
        caller.send(1)
        until(
            lambda: value(scrape(server), "podium_sample_written_total", sink="process") == ROWS,
            "the rows that were answered are sampled, and no others",
        )
        assert not [
            labels for name, labels in scrape(server) if name == "podium_sampled_rows_total" and ("model", "other") in labels
        ]


def test_a_server_that_samples_nothing_says_so(tmp_path: Path, plane: str) -> None:
    with served(tmp_path, plane, sink="none") as server, monitoring(server) as stub:
        Caller(server).send(1)
        for call in (
            lambda: stub.GetDrift(pb.DriftRequest(model_name="watched")),
            lambda: stub.ReportOutcome(pb.Outcome(model_name="watched", prediction_id="a", value=1.0)),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert "monitoring.sink is 'none'" in str(refused.value.details())
        assert not [name for name, _ in scrape(server) if name.startswith(("podium_drift", "podium_sample"))]
