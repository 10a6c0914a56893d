"""What `podium features` says."""

import json
from pathlib import Path
from typing import Any

import pytest

from feature_client.contract import write_contract
from feature_client.contract_files import DOCUMENT_FILE
from feature_client.definitions import load_definitions
from feature_client.feature_set import FeatureSet
from feature_client.fingerprint import Description
from tests.commands.shell import REGISTER, Shell
from tests.feature_client import views
from tests.feature_client.written import BASE, HELPERS, written

VIEWS = views.__file__


def version(number: int, *names: str, reads: list[str] | None = None, model: str = "demo") -> None:
    """A version in the repository that was made with these views."""
    folder = Path(f"models/{model}/{number}")
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"model")
    if names:
        definitions = load_definitions([Path(VIEWS)])
        write_contract(folder, FeatureSet([definitions.view(name) for name in names], views.STATES), reads=reads)


def test_show_says_what_a_view_declares(podium: Shell) -> None:
    text = podium.output("features", "show", "--definitions", VIEWS)
    blocks = text.strip().split("\n\n")
    assert [block.split()[0] for block in blocks] == ["aircraft@2", "route@1", "planned@1", "standardised@1"]
    stamp = load_definitions([Path(VIEWS)]).fingerprints["aircraft@2"].hex()[:16]
    lines = blocks[0].splitlines()
    assert lines[0] == (
        f"aircraft@2  stored  fingerprint {stamp}  entity aircraft (tail int64)  of flights  max age 30 days, 0:00:00"
    )
    assert lines[1].split("  ")[1] == "FEATURE"
    assert [line.split()[:3] for line in lines[2:4]] == [["tail_flights", "int32", "0"], ["tail_delay", "float32", "5.0"]]
    assert lines[4].split()[-4:] == ["3", "days,", "0:00:00", "ratio"]
    assert "tail_pair     float32 [2]  -1.0" in lines[6]
    assert blocks[3].startswith("standardised@1  model  fingerprint with its state only\n")


def test_show_as_json(podium: Shell) -> None:
    found = json.loads(podium.output("features", "show", "--definitions", VIEWS, "--json"))
    assert [view["view"] for view in found] == ["aircraft@2", "route@1", "planned@1", "standardised@1"]
    assert found[3]["fingerprint"] is None
    assert found[0]["fingerprint"] == load_definitions([Path(VIEWS)]).fingerprints["aircraft@2"].hex()
    assert found[0]["units"]["tail_delay"] == "min"
    assert found[0]["features"][0][1]["dtype"] == "int32"


def test_show_of_nothing_and_of_what_cannot_be_loaded(podium: Shell) -> None:
    Path("empty.py").write_text("")
    assert podium.output("features", "show", "--definitions", "empty.py") == "no views\n"
    assert podium.refusal("features", "show", "--definitions", "missing.py") == "definitions 'missing.py' are no Python file"
    Path("broken.py").write_text("1 / 0\n")
    assert podium.refusal("features", "show", "--definitions", "broken.py").endswith(
        "broken.py:1: ZeroDivisionError: division by zero"
    )


def differing(podium: Shell, *arguments: str) -> list[str]:
    code, out, err = podium("features", "diff", *arguments)
    assert (code, err) == (10, "")
    return out.splitlines()


def test_diff_of_files(podium: Shell) -> None:
    one = written(Path("a"))
    other = written(Path("b"), helpers=HELPERS.replace("FACTOR = 1.0", "FACTOR = 1000.0"))
    assert podium.output("features", "diff", str(one), str(one)) == "no differences\n"
    assert differing(podium, str(one), str(other)) == ["tail@1: 'FACTOR' in 'inner': 1.0 -> 1000.0"]
    assert json.loads("\n".join(differing(podium, str(one), str(other), "--json"))) == {
        "differences": ["tail@1: 'FACTOR' in 'inner': 1.0 -> 1000.0"]
    }
    assert json.loads(podium.output("features", "diff", str(one), str(one), "--json")) == {"differences": []}


def test_diff_of_single_views(podium: Shell) -> None:
    one = written(Path("a"))
    newer = written(
        Path("b"), BASE.replace("    entity=TAIL", "    version=2,\n    entity=TAIL").replace("LIMIT = 15.0", "LIMIT = 16.0")
    )
    lines = differing(podium, f"{one}#tail@1", f"{newer}#tail@2")
    assert lines == ["tail@1 -> tail@2: view: tail@1 -> tail@2", "tail@1 -> tail@2: 'LIMIT' in 'tail': 15.0 -> 16.0"]
    assert podium.output("features", "diff", f"{VIEWS}#route@1", VIEWS) == "no differences\n"
    assert podium.output("features", "diff", VIEWS, f"{VIEWS}#route@1") == "no differences\n"
    for arguments in ((f"{VIEWS}#route@1", str(one)), (str(one), f"{VIEWS}#route@1")):
        assert podium.refusal("features", "diff", *arguments) == f"there is no view 'route@1' in {one}; it has: tail@1"
    assert "there is no view 'route@9' in the definitions" in podium.refusal("features", "diff", f"{VIEWS}#route@9", VIEWS)


def test_diff_with_versions(podium: Shell) -> None:
    version(1, "route@1", "planned@1", "aircraft@2")
    version(2, "route@1", "standardised@1", "aircraft@2")
    version(3)
    podium.output("alias", "demo", "champion", "1")
    assert differing(podium, "demo:1", "demo:2") == ["planned@1: only in A", "standardised@1: only in B"]
    assert differing(podium, "demo@champion", VIEWS) == ["standardised@1: only in B"]
    assert podium.output("features", "diff", "demo:1", "demo") == "no differences\n"
    assert podium.refusal("features", "diff", "demo:3", VIEWS) == "demo:3 was made without features"
    assert podium.refusal("features", "diff", "demo:9", VIEWS).startswith("model 'demo' has no version 9")
    Path("models/demo/1", DOCUMENT_FILE).write_text("{")
    assert podium.refusal("features", "diff", VIEWS, "demo:1").startswith("features.json: no description of features: ")


def test_diff_with_a_version_by_somebody_elses_program(podium: Shell) -> None:
    version(1, "route@1")
    path = Path("models/demo/1", DOCUMENT_FILE)
    document = json.loads(path.read_text())
    entry = document["views"][0]
    entry["description"]["closure"] = 3
    entry["fingerprint"] = Description(entry["description"], {}).fingerprint.hex()
    path.write_text(json.dumps(document))
    said = podium.refusal("features", "diff", "demo:1", f"{VIEWS}#route@1")
    assert said.startswith("its recorded description is none: AttributeError")


def usage(podium: Shell, *arguments: str) -> dict[str, Any]:
    found = json.loads(podium.output("features", "usage", "--json", *arguments))
    return {row["view"]: row for row in found["views"]}


def test_usage_follows_what_serves(podium: Shell) -> None:
    version(1, "route@1", "planned@1", "aircraft@2", reads=["route_delay", "delay_ratio"])
    version(2, "route@1", "aircraft@2", reads=["route_flights", "tail_large"])
    version(3)
    version(1, "standardised@1", "aircraft@2", model="other")
    assert set(usage(podium)) == {"standardised@1", "aircraft@2"}, "without aliases the newest serves, which has no features"
    podium.output("alias", "demo", "champion", "1")
    podium.output("alias", "demo", "challenger", "2")
    found = usage(podium, "--definitions", VIEWS)
    assert found["route@1"] == {
        "view": "route@1",
        "installed": True,
        "read_by": ["demo:1", "demo:2"],
        "features": {"route_flights": ["demo:2"], "route_delay": ["demo:1"]},
    }
    assert found["planned@1"]["features"] == {"flight_min": [], "delay_ratio": ["demo:1"]}
    assert found["aircraft@2"]["features"]["tail_delay"] == ["demo:1", "other:1"]
    podium.output("alias", "demo", "challenger", "--remove")
    assert usage(podium)["route@1"]["read_by"] == ["demo:1"]
    assert usage(podium)["route@1"]["installed"] is None
    Path("models/demo/model.toml").write_text('[versions]\npolicy = "all"\n')
    assert usage(podium)["route@1"]["read_by"] == ["demo:1", "demo:2"]


def test_usage_names_what_nobody_reads(podium: Shell) -> None:
    version(1, "route@1", "aircraft@2", reads=["route_delay"])
    text = podium.output("features", "usage", "--definitions", VIEWS)
    assert text.splitlines() == [
        "aircraft@2  read by nobody",
        *(f"  {name}  read by nobody" for name in views.aircraft.names),
        "planned@1  read by nobody",
        "  flight_min  read by nobody",
        "  delay_ratio  read by nobody",
        "route@1  read by demo:1",
        "  route_flights  read by nobody",
        "standardised@1  read by nobody",
        "  distance_z  read by nobody",
        "  late_z  read by nobody",
    ]
    other = written(Path("a"))
    text = podium.output("features", "usage", "--definitions", str(other))
    assert "route@1  read by demo:1  (not installed)" in text.splitlines()


def test_usage_says_which_contracts_are_broken(podium: Shell) -> None:
    version(1, "route@1")
    Path("models/demo/1", DOCUMENT_FILE).write_text("{")
    code, out, err = podium("features", "usage")
    assert (code, err) == (1, "")
    (line,) = out.splitlines()
    assert line.startswith("problem: demo:1: features.json: no description of features: ")
    code, out, err = podium("features", "usage", "--json")
    assert (code, json.loads(out)["problems"]) == (1, [line.removeprefix("problem: ")])


def test_usage_without_features(podium: Shell) -> None:
    podium.output(*REGISTER)
    assert podium.output("features", "usage") == "no views\n"
    Path("models").rename("gone")
    assert "repository 'models' cannot be read" in podium.refusal("features", "usage")


def test_a_verb_is_needed(podium: Shell) -> None:
    with pytest.raises(SystemExit):
        podium("features")
