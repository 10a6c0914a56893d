"""The documents say what is so: links lead somewhere, tables equal the code, commands exist."""

import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from pydantic import BaseModel

from server.__main__ import main
from server.core import door_settings, feature_settings, monitoring_settings, settings, versions
from server.core.table import Table
from server.dataplane import ticket
from server.monitoring import monitor
from server.registry import manifest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md"), *(ROOT / "bench").rglob("*.md")]
)
ROW = re.compile(r"^\| (.+) \|$", re.MULTILINE)
TABLES: dict[str, type[BaseModel]] = {
    "Server": settings.ServerSettings,
    "[trace]": settings.TraceSettings,
    "model.toml": settings.ModelSettings,
    "[[inputs]] and [[outputs]]": settings.TensorSettings,
    "[batching]": settings.BatchingSettings,
    "[queue]": settings.QueueSettings,
    "[cache]": settings.CacheSettings,
    "[warmup]": settings.WarmupSettings,
    "[versions]": settings.VersionPolicy,
    "[onnx]": settings.OnnxSettings,
    "[torch]": settings.TorchSettings,
    "[text]": settings.TextSettings,
    "[fake]": settings.FakeSettings,
    "[tls]": door_settings.TlsSettings,
    "[access]": door_settings.AccessSettings,
    "[access.inference], [access.management], [access.health]": door_settings.AccessRules,
    "[limits]": door_settings.LimitSettings,
    "[keepalive]": door_settings.KeepaliveSettings,
    "[features]": feature_settings.FeatureStoreSettings,
    "[features] of model.toml": feature_settings.ModelFeatures,
    "[[features.views]]": feature_settings.ViewSettings,
    "[[features.inputs]]": feature_settings.PackedInput,
    "[monitoring]": monitoring_settings.MonitoringSettings,
    "[monitoring.parquet]": monitoring_settings.ParquetSettings,
    "[monitoring.retrain]": monitoring_settings.DeliverySettings,
    "[monitoring] of model.toml": monitoring_settings.ModelMonitoring,
    "[monitoring.quality]": monitoring_settings.QualitySettings,
    "[monitoring.retrain] of model.toml": monitoring_settings.RetrainSettings,
    "[validation]": monitoring_settings.ValidationSettings,
    "[[validation.inputs]]": monitoring_settings.Constraint,
}


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """What stands between a heading and the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no heading '{heading}'"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of a section's one table, without its head."""
    found = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in ROW.findall(text)]
    assert len(found) > 1, "there is no table"
    return [row for row in found[1:] if not set(row[0]) <= {"-", " "}]


def unquoted(cell: str) -> str:
    return cell.strip("`")


def outside_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The names GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", outside_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(document.read_text("utf-8"))):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = document if not path else document.parent / path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_document_knows_the_paths_of_one_machine(document: Path) -> None:
    absolute = re.findall(r"(?<![\w./:*<}\])])/[a-z_]+/[\w./-]+", document.read_text("utf-8"))
    # where an example has to name a folder it is one that belongs to the service; shared memory is there on every Linux
    assert [path for path in absolute if not path.startswith("/srv/") and path != "/dev/shm"] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_command_is_in_the_makefile(document: Path) -> None:
    targets = set(re.findall(r"^(\w+):", text_of("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4})make (\w+)", document.read_text("utf-8"), re.MULTILINE))
    assert named <= targets
    if document.name == "README.md" and document.parent == ROOT:
        assert {"demo", "test"} <= named


def default_word(value: Any) -> str:
    """A default as it would be written in TOML."""
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None:
        return "none"
    if isinstance(value, tuple | dict):
        return json.dumps(value if isinstance(value, dict) else list(value))
    return json.dumps(value)


def type_word(schema: Mapping[str, Any]) -> str:
    """A field's JSON schema in a few words, bounds included."""
    if "anyOf" in schema:
        return type_word(next(kind for kind in schema["anyOf"] if kind.get("type") != "null"))
    if "$ref" in schema or "allOf" in schema:
        return "table"
    if "enum" in schema:
        return " ".join(f'"{word}"' for word in schema["enum"])
    kind = schema["type"]
    if kind == "array":
        return "list of " + type_word(schema["items"])
    if kind == "object":
        return "table of " + type_word(schema["additionalProperties"])
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [
        f"{sign} {schema[name]:g}" if schema[name] < 1e6 else f"{sign} {schema[name]}"
        for name, sign in signs.items()
        if name in schema
    ]
    return " ".join([kind, *bounds])


def expected_settings(table: type[BaseModel]) -> dict[str, tuple[str, str]]:
    properties = table.model_json_schema()["properties"]
    return {
        name: (
            type_word(properties[name]),
            "required" if field.is_required() else default_word(field.get_default(call_default_factory=True)),
        )
        for name, field in table.model_fields.items()
    }


@pytest.mark.parametrize("heading", TABLES)
def test_settings_are_described_as_they_are(heading: str) -> None:
    described = rows(section(text_of("docs/CONFIG.md"), heading))
    assert all(row[-1] and row[3] for row in described), "every setting has a unit and a meaning"
    assert {unquoted(row[0]): (row[1], unquoted(row[2])) for row in described} == expected_settings(TABLES[heading])


def test_every_settings_table_is_described() -> None:
    kinds = [
        *vars(settings).values(),
        *vars(door_settings).values(),
        *vars(feature_settings).values(),
        *vars(monitoring_settings).values(),
    ]
    tables = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Table)}
    assert tables - {Table} == set(TABLES.values())


def test_flags_are_described_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    offered = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
    assert {unquoted(row[0]).split()[0] for row in rows(section(text_of("docs/CONFIG.md"), "Flags of podium serve"))} == offered


def test_the_readme_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    # argparse writes the longest verb on a line of its own
    offered = set(re.findall(r"^    (\w+)(?: {2,}|$)", capsys.readouterr().out, re.MULTILINE))
    assert {unquoted(row[0]).split()[1] for row in rows(section(text_of("README.md"), "Command line"))} == offered


def test_the_architecture_lists_every_file() -> None:
    listed: dict[str, str] = {}
    for folder, body in re.findall(
        r"^### `([\w/]+/)`[^\n]*\n(.*?)(?=^#|\Z)", text_of("docs/ARCHITECTURE.md"), re.MULTILINE | re.DOTALL
    ):
        for name, meaning in rows(body):
            assert meaning
            assert folder + unquoted(name) not in listed
            listed[folder + unquoted(name)] = meaning
    there = {
        path.relative_to(ROOT).as_posix()
        for path in [*(ROOT / "server").rglob("*.py"), *(ROOT / "feature_client").glob("*.py"), *(ROOT / "protos").glob("*.py")]
        if path.name != "__init__.py" and "_pb2" not in path.name
    }
    assert set(listed) == there


def names_in(tree: ast.AST, prefix: str = "") -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
            yield from names_in(node, f"{prefix}{node.name}.")


def test_the_walks_name_functions_that_are_there() -> None:
    named = re.findall(r"`((?:server|protos)/[\w/]+\.py):([\w.]+)`", text_of("docs/ARCHITECTURE.md"))
    assert len(named) > 20
    for path, name in named:
        assert name in set(names_in(ast.parse(text_of(path)))), f"{path} has no {name}"


@pytest.mark.parametrize(
    ("heading", "transitions"),
    [
        ("States of a version", versions.TRANSITIONS),
        ("States of a monitor", monitor.TRANSITIONS),
        ("States of a ticket", ticket.TRANSITIONS),
    ],
)
def test_state_tables_are_the_transitions(heading: str, transitions: Mapping[Enum, frozenset[Enum]]) -> None:
    shown = {
        row[0]: {} if row[1] == "–" else set(row[1].split(", "))
        for row in rows(section(text_of("docs/ARCHITECTURE.md"), heading))
    }
    assert shown == {state.name: {each.name for each in following} or {} for state, following in transitions.items()}


def test_every_word_is_used() -> None:
    code = "\n".join(path.read_text("utf-8") for room in ("server", "feature_client") for path in (ROOT / room).rglob("*.py"))
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", text_of("docs/WORDS.md"), re.MULTILINE)
    assert len(words) == len(set(words)) > 50
    unused = [
        word
        for word in words
        # a word may be written as two, with a hyphen, an underscore, or as a class's name, and in the plural
        if not re.search(r"(?<![a-z])" + re.sub(r"[- ]", r"[-_ \\n]?", word) + r"(?:e?s)?(?![a-z])", code, re.IGNORECASE)
    ]
    assert unused == []


def test_the_readme_says_what_was_measured() -> None:
    """Its numbers are those of bench/results: whoever measures again writes them down again."""
    readme = (ROOT / "README.md").read_text("utf-8")
    core = json.loads((ROOT / "bench/results/core.json").read_text("utf-8"))
    for row in core["rows"]:
        cells = [f"{row[side]['rate']:,.0f}/s, {row[side]['p50_ms']:{form}} ms" for side, form in _p50_forms(row)]
        assert f"| {row['in_flight']} | {' | '.join(cells)} | {row['rate_ratio']:.2f} |" in readme
    overload = json.loads((ROOT / "bench/results/overload.json").read_text("utf-8"))
    assert not overload["void"]
    for python, native in zip(overload["rows"]["python"], overload["rows"]["native"], strict=True):
        said = f"| {python['load']:.1f} | {python['on_time_of_capacity']:.2f} | {native['on_time_of_capacity']:.2f} |"
        assert said in readme
    many = json.loads((ROOT / "bench/results/many_models.json").read_text("utf-8"))
    for row in many["zipf"]:
        assert f"| {row['load']:.1f} | {row['on_time']:.3f} | {row['ideal']:.3f} | {row['of_ideal']:.2f} |" in readme
    for row in many["isolation"]:
        assert f"{row['beside_p99_ms']:.1f} ms, {row['beside_on_time']:.2f} |" in readme
        assert not row["share"] or f"| {row['p99_ratio']:.2f} |" in readme
    for row in many["slots"]:
        assert f"{row['of_device'] * 100:.0f} %" in readme
    _native_as_measured(readme)
    _devices_as_measured(readme)
    _features_as_measured(readme)
    _monitoring_as_measured(readme)


def _monitoring_as_measured(readme: str) -> None:
    rows = json.loads((ROOT / "bench/results/monitoring_cost.json").read_text("utf-8"))["rows"]
    serving, stalled = (next(row for row in rows if row["part"] == part) for part in ("serving", "stalled"))
    assert f"{serving['servers']['off']['rate']:,.0f} requests/s without it" in readme
    for name, word in (("one_percent", "1 %"), ("everything", "everything")):
        ratios, server = serving["compared"][name], serving["servers"][name]
        cells = f"{ratios['rate_ratio']:.2f} | {ratios['p99_ratio']:.1f} | {server['cpu_us']:.1f} µs |"
        assert f"| {word} | {cells}" in readme
    packed = next(row for row in rows if row["part"] == "sample" and (row["inputs"], row["rate"]) == ("packed", 0.01))
    assert f"costs {packed['us_per_batch']:.1f} µs for a batch of 256" in readme
    blocks = json.loads((ROOT / "bench/results/monitoring_counting.json").read_text("utf-8"))["rows"]
    assert f"{blocks[-1]['rows_per_s'] / 1e6:.1f} million rows/s of 100" in readme
    assert f"was {stalled['p99_ratio']:.1f} times that before or after" in readme
    assert f"of {stalled['offered']:,} rows {stalled['dropped']:,} were" in readme
    assert stalled["offered"] == stalled["written"] + stalled["dropped"] == stalled["requests"]


def _native_as_measured(readme: str) -> None:
    rows = json.loads((ROOT / "bench/results/native_plane.json").read_text("utf-8"))["rows"]
    for row in (row for row in rows if row["part"] == "rates"):
        turns = [row["servers"][name] for name in ("native", "python", "bare")]
        cells = " | ".join(f"{turn['rate']:,.0f}/s, {turn['p50_us'] / 1000:.2f} ms" for turn in turns)
        assert f"| {row['in_flight']} | {cells} | {row['compared'][0]['rate_ratio']:.1f} |" in readme
    alone, half = (row["servers"]["native"] for row in rows if row["part"] == "latency")
    assert f"{alone['p50_us']:.0f} µs (p50)" in readme
    assert f"p99 is {half['p99_us'] / 1000:.2f} ms" in readme
    for row in (row for row in rows if row["part"] == "bodies"):
        assert f"{row['compared'][0]['rate_ratio']:.1f} times" in readme
    (verified,) = (row for row in rows if row["part"] == "verify")
    assert f"Of {verified['requests']:,} answers that were compared {verified['wrong']} were wrong" in readme


def _devices_as_measured(readme: str) -> None:
    result = json.loads((ROOT / "bench/results/fake_device.json").read_text("utf-8"))
    found: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        found.setdefault(row["model"], {})[row["measure"]] = row
    assert result["assumed"]
    for measures in found.values():
        r1, r2, r3, r5, r6 = (measures[name] for name in ("r1", "r2", "r3", "r5", "r6"))
        assert not any(row["void"] for row in (r1, r2, r3, r5, r6))
        cells = f"{r1['value']:.2f} | {r2['value']:.2f} | {r3['value']:.2f} | {r5['value']:.0f} µs | {r6['value']:.2f} |"
        assert f"a row | {cells}" in readme


def _features_as_measured(readme: str) -> None:
    read = json.loads((ROOT / "bench/results/features_read.json").read_text("utf-8"))
    feast = {row["entities"]: f"{row['feast_over_ours']:.1f}" for row in read["feast"]}
    for row in read["reader"]:
        assert f"| {row['entities']} | {row['p50_ms']:.2f} ms | {feast.get(row['entities'], 'not run')} |" in readme
    rates = {(row["callers"], row["gives"]): row["lookups_per_s"] / 1000 for row in read["coalesced"]}
    assert f"{rates[64, 'bytes']:.0f} k/s with 64 callers, {rates[256, 'bytes']:.0f} k/s with 256" in readme
    assert f"{rates[256, 'served']:.0f} k/s as judged values" in readme
    assert f"A row takes {read['memory']['bytes_per_entity']:.0f} bytes" in readme
    assert f"memory, {read['memory']['ratio']:.2f} of what" in readme
    (built,) = json.loads((ROOT / "bench/results/features_builder.json").read_text("utf-8"))["rows"]
    assert f"{built['labels_per_s'] / 1e6:.2f} million labels/s" in readme
    assert built["wrong"] == 0


def _p50_forms(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Three digits are enough for a latency: decimals by its size."""
    return [(side, ".2f" if row[side]["p50_ms"] < 10 else ".1f") for side in ("podium", "bare_grpc_aio")]


def test_the_readmes_client_gets_its_answer(tmp_path: Path) -> None:
    """The README's own lines, against the server they describe."""
    blocks = re.findall(r"^```python\n(.*?)^```", text_of("README.md"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        "plus_one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    version = tmp_path / "repository" / "plus_one" / "1"
    version.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (version / "model.onnx").write_bytes(model.SerializeToString())
    # a socket's path must be short, which a test's own folder need not be
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/grpc"
        command = [sys.executable, "-m", "server", "serve", "--repository", str(tmp_path / "repository")]
        command += ["--grpc-address", address, "--http-address", "127.0.0.1:0", "--drain-delay-s", "0"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
            try:
                assert server.stderr is not None
                assert any('"the initial load has finished"' in line for line in server.stderr)
                assert "127.0.0.1:8001" in blocks[0]
                client = [sys.executable, "-c", blocks[0].replace("127.0.0.1:8001", address)]
                answer = subprocess.run(client, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
            finally:
                server.terminate()
                server.communicate(timeout=60)
        assert server.returncode == 0
    assert answer.stdout.strip() == str(np.ones((2, 4), np.float32))


def test_the_manifest_is_described_as_it_is() -> None:
    described = [unquoted(row[0]) for row in rows(section(text_of("docs/CONFIG.md"), "manifest.json"))]
    assert sorted(described) == sorted(manifest.Manifest.model_fields)
