import dataclasses
import shutil
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from models.flight_delay import build, client, data, demo, replay, report
from models.flight_delay.data import Flights
from models.flight_delay.events import load_events
from models.flight_delay.facts import ROOT, difference
from models.flight_delay.filling import Logs
from models.flight_delay.history import History, load_history
from models.flight_delay.registration import MODEL, MODEL_FILE, PROGRAM_FILE, find
from models.flight_delay.report import Judged
from models.flight_delay.server_process import ServerFailed, ServerProcess
from models.flight_delay.training import Settings
from server.core.clock import NS_PER_MS
from server.monitoring.baseline_document import BASELINE_FILE
from server.registry.aliases import read_aliases
from server.registry.golden import GOLDEN_FILE
from server.registry.manifest import Code, Data, Environment, FileDigest, Manifest, Recipe
from server.telemetry.histogram import LATENCY_EDGES_NS, ROWS_EDGES, Histogram

QUICK = Settings(epochs=1)
ROWS = 1500
COMMIT = Code(commit="c" * 40, dirty=False)
ARGUMENTS = ("--epochs", "1", "--limit-rows", str(ROWS), "--flights", "300", "--concurrency", "32")


@pytest.fixture(scope="module")
def flights() -> Flights:
    return data.load()


@pytest.fixture(scope="module")
def histories() -> History:
    return load_history()


@pytest.fixture(scope="module")
def happened() -> Logs:
    return load_events()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, flights: Flights, histories: History, happened: Logs) -> None:
    """The data is read from disk once for all tests, and the working tree counts as committed."""
    monkeypatch.setattr(build, "load", lambda: flights)
    monkeypatch.setattr(replay, "load", lambda: flights)
    for module in (build, demo):
        monkeypatch.setattr(module, "load_history", lambda: histories)
    monkeypatch.setattr(demo, "load_events", lambda: happened)
    monkeypatch.setattr("models.flight_delay.facts.collect_code", lambda folder: COMMIT)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, flights: Flights) -> Path:
    """A repository with version 1, told by the timetable; no test changes it."""
    root = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load", lambda: flights)
        patch.setattr("models.flight_delay.facts.collect_code", lambda folder: COMMIT)
        build.ensure_registered(root, QUICK, limit_rows=ROWS)
    return root


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, flights: Flights, histories: History) -> Path:
    """A repository with both variants, as the demo makes it; no test changes it."""
    root = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load", lambda: flights)
        patch.setattr(build, "load_history", lambda: histories)
        patch.setattr("models.flight_delay.facts.collect_code", lambda folder: COMMIT)
        build.ensure_registered(root, QUICK, limit_rows=ROWS, alias=build.SCHEDULE_ALIAS)
        build.ensure_registered(root, QUICK, limit_rows=ROWS, variant="history")
    return root


def _manifest(root: Path) -> Manifest:
    found = find(root)
    assert found is not None
    assert found.manifest is not None
    return found.manifest


@pytest.mark.usefixtures("loaded")
def test_demo_passes_twice_and_trains_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--repository", str(tmp_path / "repo"), *ARGUMENTS)
    assert demo.main(arguments) == 0
    first = capsys.readouterr().out
    assert "failed requests  0\n" in first
    assert "flight_delay:1 @schedule (schedule) trained in" in first
    assert "flight_delay:2 @champion (history) trained" in first
    assert "AUC in June: " in first
    assert _manifest(tmp_path / "repo").files[MODEL_FILE].sha256[:16] in first
    assert "the server left with status 0" in first
    assert "All checks passed" in first
    assert "\n  300 rows audited: 0 of 8,400 values mismatch\n" in first
    assert "\n  0 of 2,700 stored rows more than 0 s behind the log, or ahead\n" in first
    too_wide = [line for line in first.splitlines() if len(line) > 80 and str(tmp_path) not in line]
    assert not too_wide
    assert demo.main(arguments) == 0
    assert "flight_delay:2 @champion (history) is used again" in capsys.readouterr().out
    assert read_aliases(tmp_path / "repo" / MODEL) == {"champion": 2, "schedule": 1}
    assert psutil.Process().children(recursive=True) == []


@pytest.mark.usefixtures("loaded")
def test_demo_fails_when_the_served_file_does_not_answer_as_expected(
    both: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "predict", lambda content, inputs: {client.OUTPUT: np.full((300, 1), 0.5, np.float32)})
    assert demo.main(("--repository", str(both), *ARGUMENTS)) == 1
    printed = capsys.readouterr().out
    assert "by the file alone it is 0.5" in printed
    assert "All checks passed" not in printed


@pytest.mark.usefixtures("loaded")
def test_registering_twice_gives_a_child_with_the_same_bytes(tmp_path: Path) -> None:
    assert build.ensure_registered(tmp_path, QUICK, limit_rows=ROWS).key.version == 1
    first = _manifest(tmp_path)
    assert build.ensure_registered(tmp_path, QUICK, limit_rows=ROWS).key.version == 2
    second = _manifest(tmp_path)
    assert (first.version, first.parent, second.version, second.parent) == (1, None, 2, 1)
    assert first.files == second.files
    assert set(second.files) == {MODEL_FILE, PROGRAM_FILE, GOLDEN_FILE, BASELINE_FILE}
    assert second.golden is not None
    assert (tmp_path / MODEL / "model.toml").read_bytes() == (ROOT / "models" / MODEL / "model.toml").read_bytes()
    assert second.recipe == Recipe(
        command="python -m models.flight_delay.build",
        arguments=("--inputs", "schedule", "--seed", str(QUICK.seed), "--epochs", "1", "--limit-rows", str(ROWS)),
    )
    assert second.code == COMMIT
    assert second.environment is not None
    assert "torch" in second.environment.packages


@pytest.mark.usefixtures("loaded")
def test_a_changed_file_is_not_used_again(tmp_path: Path, repository: Path) -> None:
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    path = tmp_path / MODEL / "1" / MODEL_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    registered = build.ensure_registered(tmp_path, QUICK, limit_rows=ROWS, reuse=True)
    assert registered.key.version == 2
    assert "its manifest says" in registered.reason


@pytest.mark.usefixtures("loaded")
def test_the_recipe_registers_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--register", "--repository", str(tmp_path), "--epochs", "1", "--limit-rows", "500"]
    assert build.main([*arguments, "--alias", "challenger"]) == 0
    assert "registered flight_delay:1 @challenger" in capsys.readouterr().out
    assert read_aliases(tmp_path / MODEL) == {"challenger": 1}
    assert find(tmp_path) is None
    assert build.main([*arguments, "--alias", "Not An Alias"]) == 1
    assert "Not An Alias" in capsys.readouterr().err
    assert not (tmp_path / MODEL / "2").exists()


BUILT = Manifest(
    model=MODEL,
    version=1,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    files={MODEL_FILE: FileDigest(sha256="a" * 64, bytes=1000)},
    code=COMMIT,
    data=Data(source="a package", digest="sha256:" + "d" * 64, rows=1000),
    environment=Environment(python="3.11.1", platform="one kernel", packages={"torch": "2"}),
    recipe=Recipe(command="python -m recipe", arguments=("--seed", "1")),
)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"environment": Environment(python="3.11.1", platform="another kernel", packages={"torch": "2"})}, None),
        ({"code": None}, "no commit"),
        ({"code": Code(commit="c" * 40, dirty=True)}, "uncommitted"),
        ({"code": Code(commit="d" * 40, dirty=False)}, "from commit dddddddddddd"),
        ({"data": None}, "other data"),
        ({"data": Data(source="a package", digest="sha256:other")}, "other data"),
        ({"recipe": Recipe(command="python -m recipe", arguments=("--seed", "2"))}, "other arguments"),
        ({"environment": Environment(python="3.11.1", platform="one kernel", packages={"torch": "3"})}, "other packages"),
        ({"environment": None}, "other packages"),
    ],
)
def test_a_version_is_the_same_only_if_everything_that_decides_its_bytes_is(
    changed: dict[str, Any], reason: str | None
) -> None:
    found = difference(BUILT.model_copy(update=changed), BUILT)
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")


def _good() -> Judged:
    late = np.array([True, False, True, False])
    probability = np.array([0.9, 0.1, 0.6, 0.2])
    outcome = client.Outcome(probability, np.full(4, 0.01), frozenset({"1"}), (), 2.0, 1.0)
    counted = client.Counted(4, 2)
    return Judged(outcome, counted, "", 0.5, late, probability.copy(), BUILT, whole=False)


def _with_outcome(**changes: Any) -> Judged:
    return dataclasses.replace(_good(), outcome=dataclasses.replace(_good().outcome, **changes))


def test_a_good_replay_has_no_problem() -> None:
    assert report.problems(_good()) == []


@pytest.mark.parametrize(
    ("judged", "says"),
    [
        (_with_outcome(probability=np.array([0.9, np.nan, 0.6, 0.2]), errors=("gone",)), "1 of 4 requests failed: gone"),
        (_with_outcome(versions=frozenset({"1", "2"})), "version 1, 2 answered"),
        (_with_outcome(versions=frozenset()), "version none answered"),
        (_with_outcome(probability=np.array([0.1, 0.9, 0.6, 0.2])), "by the file alone it is 1.0"),
        (_with_outcome(probability=np.array([0.9, 0.1, 0.6, 0.2001])), "away from the file's own"),
        (dataclasses.replace(_good(), counted=client.Counted(3, 1)), "counted 3 rows, 4 were sent"),
        (dataclasses.replace(_good(), whole=True), "README.md says 0.787"),
    ],
)
def test_every_check_can_fail(judged: Judged, says: str) -> None:
    assert says in "\n".join(report.problems(judged))


def test_server_latency_is_read_from_its_histogram() -> None:
    edges = [edge / 1e9 for edge in LATENCY_EDGES_NS]
    counts = [100 if edge >= 2 * NS_PER_MS else 0 for edge in LATENCY_EDGES_NS]
    lines = ["# TYPE podium_request_seconds histogram"]
    for model, scale in (("flight_delay", 1), ("other", 7)):
        label = f'model="{model}",version="1",phase="total"'
        lines += [
            f'podium_request_seconds_bucket{{{label},le="{edge!r}"}} {count * scale}'
            for edge, count in zip(edges, counts, strict=True)
        ]
        lines.append(f'podium_request_seconds_bucket{{{label},le="+Inf"}} {100 * scale}')
    histogram = report.latency_histogram("\n".join(lines) + "\n", "flight_delay")
    assert histogram.count == 100
    assert histogram.quantile(1.0) == 2 * NS_PER_MS
    assert report.latency_histogram("", "flight_delay").quantile(0.5) is None


def test_batches_are_shown_in_bins_without_empty_ends() -> None:
    rows = Histogram(ROWS_EDGES)
    assert report.distribution(rows) == []
    rows.observe(np.array([2, 2, 2, 2, 2, 2, 5, 8, 11, 70_000]))
    shown = [line.split() for line in report.distribution(rows)]
    assert shown[:3] == [["2", "rows", "60.0%", "#" * 24], ["3-4", "rows", "0.0%"], ["5-8", "rows", "20.0%", "#" * 8]]
    assert shown[-1] == ["over", "65536", "rows", "10.0%", "#" * 4]
    single = Histogram(ROWS_EDGES)
    single.observe_one(1)
    assert report.distribution(single)[0].split()[:2] == ["1", "row"]


def test_one_bad_request_fails_alone(repository: Path, flights: Flights) -> None:
    encoded = client.encode(list(islice(replay.split(flights.months(7)), 40)))
    del encoded[7][0]
    calls: list[int] = []
    with ServerProcess(repository, MODEL) as server:
        outcome, counted = client.replay(server.grpc_address, MODEL, encoded, concurrency=8, progress=calls.append)
        page = server.metrics()
    assert server.exit_status == 0
    assert np.flatnonzero(np.isnan(outcome.probability)).tolist() == [7]
    assert outcome.failed == len(outcome.errors) == 1
    assert outcome.versions == {"1"}
    assert calls == [1] * 40
    assert counted.rows == report.latency_histogram(page, MODEL).count == 39
    assert counted.executions == report.rows_histogram(page, MODEL).count
    assert report.cpu_seconds(page) > 0


def test_a_server_that_cannot_start_says_why(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("models.flight_delay.server_process._free_ports", lambda: (port, port))
        with pytest.raises(ServerFailed, match="left with status 1"), ServerProcess(repository, MODEL):
            pass
    assert psutil.Process().children() == []


def test_an_interrupted_demo_leaves_no_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "models.flight_delay.demo", *ARGUMENTS[:4], "--repository", str(tmp_path)]
    # one at a time: seconds of replay, in which the signal arrives
    command += ["--flights", "3000", "--concurrency", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "while it runs" in line)
        # not SIGINT, which a runner of tests in the background may have had its children ignore
        process.send_signal(signal.SIGTERM)
        assert "interrupted" in process.stdout.read()
        assert process.wait(60) == demo.INTERRUPTED
    port = int(line.rpartition(":")[2].partition("/")[0])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


@pytest.mark.usefixtures("loaded")
def test_ctrl_c_while_flights_are_replayed_stops_the_server(
    both: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[psutil.Process] = []

    def interrupt(*arguments: object, **named: object) -> None:
        seen.extend(psutil.Process().children())
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "replay_in_time", interrupt)
    before = signal.getsignal(signal.SIGTERM)
    assert demo.main(("--repository", str(both), *ARGUMENTS)) == demo.INTERRUPTED
    assert "interrupted" in capsys.readouterr().out
    assert len(seen) == 2  # the server and the store
    assert not any(process.is_running() for process in seen)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("loaded")
def test_a_server_that_dies_ends_the_demo_with_its_log(
    both: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill_first(*arguments: Any, **named: Any) -> Any:
        for child in psutil.Process().children():
            if "serve" in child.cmdline():
                child.kill()
                child.wait()
        return replay_flights(*arguments, **named)

    replay_flights = client.replay_in_time
    monkeypatch.setattr(client, "replay_in_time", kill_first)
    assert demo.main(("--repository", str(both), *ARGUMENTS)) == 1
    printed = capsys.readouterr().out
    assert "FAILED: the server stopped answering" in printed
    assert '"serving"' in printed


@pytest.mark.parametrize("arguments", [("--concurrency", "0"), ("--flights", "-1")])
def test_senseless_arguments_are_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        demo.main(arguments)
    assert refused.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err
