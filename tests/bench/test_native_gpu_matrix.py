"""The whole matrix against fake devices, in seconds: every row is there, ratios are computed, failures cost their rows only.

Nothing here is about speed: a busy machine makes ratios worse, and runs void, and that is what rows then say.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.__main__ import main
from bench.gpu.engine import open_version
from bench.gpu.measures import MEASURES

ROWS = ["engine", *MEASURES]
PLAN = """
[[model]]
name = "{name}"
target_p99_ms = 60.0
deadline_ms = 60.0
in_flight = 64
connections = 2
clients = 2
{how}
"""
FAKE = "max_batch = 8\nfake = { t0_us = 10000.0, row_us = 1000.0 }"


def measured(folder: Path, minutes: float, *plans: tuple[str, str]) -> tuple[int, dict[str, Any]]:
    path = folder / "models.toml"
    path.write_text("assumed = true\n" + "".join(PLAN.format(name=name, how=how) for name, how in plans))
    status = main(
        ["--device", "fake", "--minutes", str(minutes), "--results", str(folder / "results"), "--catalogue", str(path)]
    )
    result: dict[str, Any] = json.loads((folder / "results" / "fake_device.json").read_text())
    return status, result


def test_every_row_is_there_and_every_ratio_is_computed(tmp_path: Path) -> None:
    status, result = measured(tmp_path, 0.35, ("tiny", FAKE))
    rows = {row["measure"]: row for row in result["rows"]}
    assert list(rows) == ROWS
    assert {row["status"] for row in rows.values()} == {"measured"}, rows
    assert status == 0
    assert all(row["assumed"] for row in rows.values())
    # 8 rows in 18 ms: no machine makes a fake device faster
    assert 0 < rows["engine"]["rate"] < 450
    assert rows["engine"]["device"] == "fake:0"
    for name in MEASURES:
        row = rows[name]
        assert row["ratio"] == name
        assert {"most", "least"} & set(row)
        assert isinstance(row["met"], bool)
        assert isinstance(row["void"], bool)
        assert row["server_cpu_s"] >= 0
        assert row["runs"]
    assert all(run["wrong"] == run["uncompared"] == 0 for name in ("r2", "r3", "r5", "r6") for run in rows[name]["runs"])
    assert {probe["void"] for probe in rows["r1"]["runs"]} <= {True, False}
    assert rows["r3"]["ideal_p99_us"] > 10_000
    assert rows["r6"]["runs"][0]["offered_per_s"] == pytest.approx(1.2 * rows["engine"]["rate"])
    assert result["environment"]["devices"] == result["devices_after"] == []
    assert result["environment"]["versions"]["numpy"]
    # null where torch is not installed; a build for the CPU has no CUDA
    assert result["environment"]["torch"] is None or set(result["environment"]["torch"]) == {"cuda", "cudnn", "device"}


def test_a_recipe_that_fails_and_a_server_that_does_not_start_cost_their_rows(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "import json, sys\nfrom pathlib import Path\nversion = Path(sys.argv[2], 'unlabelled', '1')\n"
        "version.mkdir(parents=True)\nspec = {'datatype': 'FP32', 'shape': [2]}\n"
        "tensors = {'inputs': [{'name': 'IN', **spec}], 'outputs': [{'name': 'OUT', **spec}]}\n"
        "(version / 'fake.json').write_text(json.dumps(tensors))\n"
        'labels = \'[[outputs]]\\nname = "OUT"\\nlabels = "absent.txt"\\n\'\n'
        "(version.parent / 'model.toml').write_text('max_batch = 2\\n' + labels)\n"
    )
    failing = 'recipe = ["-c", "raise SystemExit(\'no such weights\')"]'
    status, result = measured(tmp_path, 0.05, ("absent", failing), ("unlabelled", f'recipe = ["{recipe}"]'))
    assert status == 1
    rows = result["rows"]
    assert [(row["model"], row["measure"]) for row in rows] == [(m, r) for m in ("absent", "unlabelled") for r in ROWS]
    assert all(row["status"] == "failed" and "no such weights" in row["text"] for row in rows[: len(ROWS)])
    opened, first, *others = rows[len(ROWS) :]
    # the engine opens what a server would refuse
    assert opened["status"] == "measured"
    assert {row["status"] for row in (first, *others)} == {"failed"}
    assert all("absent.txt" in row["text"] for row in (first, *others))
    assert not any("value" in row for row in rows)


def test_what_is_measured_is_what_is_served(tmp_path: Path) -> None:
    """The newest version, with the settings beside it."""
    for number, width in (("1", 3), ("2", 5)):
        folder = tmp_path / "m" / number
        folder.mkdir(parents=True)
        tensors = [{"name": "IN", "datatype": "FP32", "shape": [width]}]
        (folder / "fake.json").write_text(json.dumps({"inputs": tensors, "outputs": [tensors[0] | {"name": "OUT"}]}))
    backend, settings = open_version(tmp_path, "m")
    assert backend.signature.inputs[0].shape == (5,)
    assert settings.backend is None
    backend.close()
