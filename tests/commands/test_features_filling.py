"""What `podium features materialize` and `podium features audit` do and say."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from feature_client.columns import read_events
from feature_client.contract import write_contract
from feature_client.definitions import load_definitions
from feature_client.embedded import EmbeddedServer, start_embedded
from feature_client.feature_set import FeatureSet
from feature_client.fingerprint import stamp_of
from feature_client.keys import row_keys
from feature_client.point_in_time import find, history_of
from feature_client.redis_store import RedisStore
from feature_client.row import unpack
from feature_client.samples import Sampled, line_of, sampled_of
from feature_client.schema import Status
from feature_client.served import absent_rows, serve
from server.commands import auditing, materializing
from tests.commands.shell import Shell
from tests.feature_client import views

DEFINITIONS = views.__file__
FILLED = re.compile(r"(\w+@\d): ([\d,]+) rows in [\d.]+ s \([\d,]+ rows/s\), store (\S+)")
MORE = """
TRAINS = EventLog("trains", {"tail": "int64", "event_us": "int64"})


@feature_view(entity=AIRCRAFT, source=TRAINS, inputs={"trains": count(days(1))}, features=[Feature("trains", "int64", 0)])
def trains(trains: Array) -> Mapping[str, Array]:
    return {"trains": trains}
"""
END_US = 1_800_000_000_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with start_embedded() as running:
        yield running


@pytest.fixture
def log(podium: Shell) -> str:
    """The log of flights as a file in the command's folder."""
    pyarrow.parquet.write_table(
        pa.table({name: pa.array(column) for name, column in views.flights(500).items()}), "flights.parquet"
    )
    return "flights=flights.parquet"


def fill(podium: Shell, log: str, url: str, *arguments: str) -> list[tuple[str, int]]:
    text = podium.output("features", "materialize", *arguments, "--definitions", DEFINITIONS, "--events", log, "--store", url)
    found = [FILLED.match(line) for line in text.splitlines()]
    return [(each[1], int(each[2].replace(",", ""))) for each in found if each]


def test_materialize_fills_every_stored_view(podium: Shell, log: str, server: EmbeddedServer) -> None:
    assert fill(podium, log, server.url) == [("aircraft@2", 5), ("route@1", 16)]
    assert fill(podium, log, server.url, "route@1") == [("route@1", 16)]
    definitions = load_definitions([Path(DEFINITIONS)])
    view, store = definitions.view("aircraft@2"), RedisStore(server.url)
    keys = {"tail": np.arange(-1, 4)}
    stamp = stamp_of(definitions.fingerprints[view.ref])
    held = unpack(view, stamp, store.read(row_keys("podium", view, keys), 5.0))
    assert view.source is not None
    built = find(history_of(view, read_events("flights.parquet", view.source)), keys, np.full(5, END_US))
    assert held.row_status.tolist() == [Status.PRESENT] * 5
    assert all(held.values[name].tolist() == built.values[name].tolist() for name in ("tail_flights", "tail_large"))
    store.close()


def test_until_an_instant(podium: Shell, log: str, server: EmbeddedServer) -> None:
    for instant in ("2023-11-18", "2023-11-18T00:00:00Z", "2023-11-17T19:00:00-05:00"):
        assert fill(podium, log, server.url, "aircraft@2", "--project", f"p{len(instant)}", "--until", instant) == [
            ("aircraft@2", 5)
        ]
    with pytest.raises(SystemExit):
        fill(podium, log, server.url, "--until", "yesterday")


def test_an_older_fill_leaves_what_is_newer(podium: Shell, log: str, server: EmbeddedServer) -> None:
    fill(podium, log, server.url, "aircraft@2", "--project", "newer")
    text = podium.output(
        *("features", "materialize", "aircraft@2", "--definitions", DEFINITIONS, "--events", log, "--store", server.url),
        *("--project", "newer", "--until", "2023-11-18", "--checkpoint", "checkpoint"),
    )
    assert re.search(r"5 rows in .*; of 5 the store had newer ones$", text.strip())
    assert not Path("checkpoint").exists()


def test_a_terminal_has_a_bar_and_a_log_a_line_now_and_then(
    podium: Shell, log: str, monkeypatch: pytest.MonkeyPatch, server: EmbeddedServer
) -> None:
    flags = ("--definitions", DEFINITIONS, "--events", log, "--store", server.url)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = podium("features", "materialize", *flags)
    assert (code, out.count("rows/s")) == (0, 2)
    assert "aircraft@2: 100%" in err
    assert "route@1: 100%" in err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert podium.output("features", "materialize", *flags).count("rows/s") == 2
    lines = materializing._Lines()
    lines("v@1", 10, 100)
    monkeypatch.setattr(materializing, "_QUIET_S", 0.0)
    lines("v@1", 2000, 10_000)
    lines("v@1", 10_000, 10_000)
    lines.close()


def test_rows_that_end_with_the_command_are_said_to(podium: Shell, log: str) -> None:
    code, out, err = podium("features", "materialize", "--definitions", DEFINITIONS, "--events", log, "--store", "memory://")
    assert (code, out.count("store memory")) == (0, 2)
    assert err.startswith("the rows ended with this command")


def test_what_materialize_refuses(podium: Shell, log: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(*arguments: str, definitions: str = DEFINITIONS, store: str = "memory://") -> str:
        return podium.refusal("features", "materialize", *arguments, "--definitions", definitions, "--store", store)

    assert "there is no view 'nothing@1' in the definitions; they have: aircraft@2" in refusal("nothing@1", "--events", log)
    assert refusal("planned@1", "--events", log) == "'planned@1' is a request view: it has no rows to store"
    assert refusal("--events", "trains=x.csv") == "no view here is computed from 'trains'; there are: flights"
    assert refusal("--events", log, log) == "two files are named for 'flights': flights.parquet and flights.parquet"
    assert "'missing.csv' cannot be read" in refusal("--events", "flights=missing.csv")
    Path("empty.py").write_text("")
    assert refusal("--events", log, definitions="empty.py") == "there is no stored view in the definitions"
    Path("two.py").write_text(Path(DEFINITIONS).read_text() + MORE)
    assert refusal("--events", log, definitions="two.py") == "there is no file for: trains; give --events NAME=PATH"
    assert "127.0.0.1:1" in refusal("--events", log, store="redis://127.0.0.1:1/0")
    monkeypatch.setitem(sys.modules, "feature_client.columns", None)
    assert refusal("--events", log).startswith("event logs need the extra 'features', which is not installed: ")
    with pytest.raises(SystemExit):
        refusal("--events", "flights")


def samples(definitions_file: str = DEFINITIONS, count: int = 200) -> Path:
    """A file of what version 3 served from the log, as of the instants at which flights became known."""
    definitions = load_definitions([Path(definitions_file)])
    features = FeatureSet(list(definitions.views.values()), views.STATES)
    folder = Path("models/delays/3")
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model")
    write_contract(folder, features)
    events, rng = views.flights(500), np.random.default_rng(0)
    chosen = rng.integers(0, 500, count)
    as_of_us = events["created_us"][chosen]
    keys = {name: events[name][chosen] for name in features.keys}
    request = {"distance_mi": rng.normal(900, 300, count), "speed_kn": np.full(count, 430.0)}
    found = {view.ref: find(history_of(view, events), keys, as_of_us) for view in features.stored}
    served = {view.ref: serve(view, found[view.ref], as_of_us) for view in features.stored}
    made = features.assemble(count, request, {}, served)
    available = {ref: each.available_us for ref, each in found.items()}
    refs = tuple(view.ref for view in features.views)
    path = Path("samples")
    path.write_bytes(line_of(Sampled("delays:3", refs, as_of_us, keys, request, made.values, made.statuses, available, ())))
    return path


def audit_flags(log: str) -> tuple[str, ...]:
    return ("features", "audit", "--samples", "samples", "--definitions", DEFINITIONS, "--events", log)


def test_an_audit_without_mismatches(podium: Shell, log: str) -> None:
    samples()
    lines = podium.output(*audit_flags(log), "--max-lag", "0").splitlines()
    assert lines[0].split() == ["ORIGIN", "VIEW", "FEATURE", "ROWS", "MISMATCHES", "FIRST"]
    assert lines[1].split() == ["delays:3", "aircraft@2", "tail_flights", "200", "0", "-"]
    assert lines[-3:] == [
        "lag: 0 of 400 stored rows were behind the log",
        "200 rows audited: 0 of 2,600 values mismatch",
        "0 of 400 stored rows more than 0 s behind the log, or ahead",
    ]
    found = json.loads(podium.output(*audit_flags(log), "--json"))
    assert (found["mismatches"], found["rows"], found["reads"], found["lag_us"]) == (
        0,
        200,
        400,
        {"rows": 0, "p50": None, "max": None},
    )


def test_an_audit_that_finds_something(podium: Shell, log: str) -> None:
    path = samples()
    made = json.loads(path.read_bytes())
    delays = made["values"]["tail_delay"]["values"]
    row = made["statuses"]["tail_delay"].index(Status.PRESENT)
    delays[row] = (float.fromhex(delays[row]) * 2).hex()
    made["as_of_us"] = [instant + 3_600_000_000 * 24 * 90 * (index == 0) for index, instant in enumerate(made["as_of_us"])]
    # of the instants before the row was known, and a row that nobody made
    made["available_us"]["aircraft@2"][1] += 1
    made["statuses"]["route_delay"][2] = made["statuses"]["route_flights"][2] = 0x85
    path.write_text(json.dumps(made) + "\n")
    code, out, err = podium(*audit_flags(log), "--max-lag", "3600")
    assert (code, err) == (10, "")
    assert re.search(r"tail_delay +200 +[\d,]+ +tail=.* at 20\S+: served .* PRESENT, recomputed .*, \d+ ULPs", out)
    assert re.search(
        r"^lag: \d+ of 400 stored rows were behind the log, by [\d.e+]+ s at the median, [\d.e+]+ s at most$", out, re.M
    )
    assert "ahead: 1 of 400 stored rows were known only after" in out
    assert "unknown: 1 of 400 stored rows were never made by the log" in out
    assert "unanswered: 1 of 200 rows lack what came too late, or not as it was written" in out
    assert re.search(r"^[1-9]\d* of 400 stored rows more than 3600 s behind the log, or ahead$", out.splitlines()[-1])
    code, out, err = podium(*audit_flags(log), "--json")
    found = json.loads(out)
    assert (code, found["unknown"], found["unanswered"]) == (10, 1, 1)
    first = next(each["example"] for each in found["features"] if each["feature"] == "tail_delay")
    assert set(first["keys"]) == {"tail", "origin", "destination"}
    assert first["recomputed_status"]


def test_a_store_that_never_has_a_row_is_found(podium: Shell, log: str) -> None:
    """Rows that were filled under other keys than are read: each value is the default that training has for no row."""
    path = samples()
    made = json.loads(path.read_bytes())
    definitions = load_definitions([Path(DEFINITIONS)])
    features = FeatureSet(list(definitions.views.values()), views.STATES)
    count = len(made["as_of_us"])
    found = {view.ref: absent_rows(view, count, Status.NOT_FOUND) for view in features.stored}
    as_of_us = np.array(made["as_of_us"]) + 3 * 86_400_000_000
    served = {view.ref: serve(view, found[view.ref], as_of_us) for view in features.stored}
    whole = sampled_of(path.read_bytes())
    again = features.assemble(count, whole.request, {}, served)
    available = {ref: each.available_us for ref, each in found.items()}
    path.write_bytes(
        line_of(replace(whole, as_of_us=as_of_us, values=again.values, statuses=again.statuses, available_us=available))
    )
    code, out, _ = podium(*audit_flags(log))
    assert code == 10
    assert "0 of 2,600 values mismatch" in out
    assert re.search(r"^[1-9]\d* of 400 stored rows more than 172800 s behind", out.splitlines()[-1])


def test_a_transform_that_was_changed_is_found(podium: Shell, log: str) -> None:
    samples()
    Path("changed.py").write_text(Path(DEFINITIONS).read_text().replace("speed_kn * 1.15078", "speed_kn * 1.15"))
    code, out, _ = podium("features", "audit", "--samples", "samples", "--definitions", "changed.py", "--events", log)
    assert code == 10
    wrong = {line.split()[2] for line in out.splitlines()[1:] if line.startswith("delays:3") and line.split()[4] != "0"}
    assert wrong == {"flight_min", "delay_ratio"}


def test_what_audit_refuses(podium: Shell, log: str) -> None:
    path = samples(count=3)
    line = path.read_bytes()
    other = json.loads(line) | {"views": ["aircraft@2"]}
    path.write_bytes(line + json.dumps(other).encode() + b"\n")
    assert podium.refusal(*audit_flags(log)) == "samples of 'delays:3' are of different views: they are not of one version"
    whole = sampled_of(line)
    path.write_bytes(line_of(replace(whole, given=tuple(whole.values))))
    assert podium.refusal(*audit_flags(log)).endswith("was stated by the calls themselves: nothing was compared")
    path.write_bytes(b"")
    assert podium.refusal(*audit_flags(log)) == "there is no sample in these files: nothing was compared"
    path.write_bytes(line)
    Path("models/delays/3/features.json").unlink()
    Path("models/delays/3/features.npz").unlink()
    assert podium.refusal(*audit_flags(log)) == "delays:3 has no state of standardised@1, which its samples say it reads"
    path.write_bytes(line.replace(b'"delays:3"', b'"other:1"'))
    assert "there is no model 'other' in the repository" in podium.refusal(*audit_flags(log))
    assert auditing._iso(2**62) == str(2**62)  # no calendar goes that far
    with pytest.raises(SystemExit):
        podium(*audit_flags(log), "--max-lag", "soon")
