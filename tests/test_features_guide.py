"""docs/FEATURES.md from its first line to its last: its definitions, settings and commands, as an operator would use them."""

import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import helper

from feature_client.contract import write_contract
from feature_client.definitions import load_definitions
from feature_client.feature_set import FeatureSet
from feature_client.point_in_time import training_set
from feature_client.schema import Array, status_text
from tests.feature_client.servers import tcp_server
from tests.server.models import graph, put
from tests.server.serving import Serving, infer_message

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "FEATURES.md").read_text("utf-8")
CARRIERS = [b"AA", b"DL", b"UA"]
MODEL = "punctual"


def block(language: str, comment: str = "") -> str:
    (found,) = re.findall(rf"^```{language}\n{re.escape(comment)}(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    return str(found)


def command(verb: str) -> list[str]:
    (line,) = re.findall(rf"^    podium (features {verb} .*)$", GUIDE, re.MULTILINE)
    return str(line).split()


def podium(home: Path, *arguments: str, status: int = 0) -> str:
    """What a verb prints, run in an operator's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=home,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def arrivals() -> dict[str, Array]:
    randomness = np.random.default_rng(3)
    return {
        "event_us": np.sort(time.time_ns() // 1000 - randomness.integers(10**7, 4 * 10**9, 500)),
        "carrier": np.array(CARRIERS, dtype=object)[randomness.integers(0, len(CARRIERS), 500)],
        "late": randomness.random(500) < 0.3,
    }


def write_log(path: Path, events: dict[str, Array]) -> None:
    pq.write_table(pa.table({**events, "carrier": pa.array(events["carrier"].tolist(), pa.binary())}), path)


def test_the_guide_is_true_from_beginning_to_end(tmp_path: Path) -> None:
    home = tmp_path
    (home / "features.py").write_text(block("python"))
    events = arrivals()
    write_log(home / "arrivals.parquet", events)
    definitions = load_definitions([home / "features.py"])
    features = FeatureSet([definitions.views["carrier_arrivals@1"]])
    (home / "bundle").mkdir()
    write_contract(home / "bundle", features)
    node = helper.make_node("Identity", ["carrier_late_6h"], ["y"])
    model = graph([node], {"carrier_late_6h": ("FP32", ["N", 1])}, {"y": ("FP32", ["N", 1])})
    files = {"model.onnx": model} | {path.name: path.read_bytes() for path in (home / "bundle").iterdir()}
    (home / "models").mkdir()
    put(home / "models", MODEL, 1, files, "max_batch = 8\n" + block("toml", "# model.toml\n"))

    with tcp_server(home / "store") as store:
        filled = podium(home, *command("materialize"), "--store", store.url)
        assert re.search(r"carrier_arrivals@1\W.*\b3\b", filled)
        settings = tomllib.loads(block("toml", "# --config\n"))["features"]
        settings |= {
            "definitions": [str(home / name) for name in settings["definitions"]],
            "store": store.url,
            "audit_file": str(home / settings["audit_file"]),
            "audit_of_rows": 1,
            "budget_us": 5_000_000,
        }
        (home / "server").mkdir()
        server = Serving(home / "models", home / "server", features=settings)
        try:
            asked = [*CARRIERS, b"ZZ"]
            raw = b"".join(len(each).to_bytes(4, "little") + each for each in asked)
            message = infer_message(MODEL, {"carrier": ("BYTES", [len(asked), 1], raw)})
            message.parameters["podium_features"].bool_param = True
            with server.stub() as stub:
                response = stub.ModelInfer(message)
        finally:
            server.stop()
    now_us = np.full(len(asked), time.time_ns() // 1000)
    keys = {"carrier": np.array(asked, dtype=object)}
    made = training_set(features, {"arrivals": events}, now_us, keys)
    assert response.raw_output_contents[0] == made.values["carrier_late_6h"].tobytes()
    statuses = [status_text(status) for status in made.statuses["carrier_late_6h"].tolist()]
    assert statuses == ["PRESENT", "PRESENT", "PRESENT", "DEFAULTED(NOT_FOUND)"]
    for status in re.findall(r"^\| `(\w+)(?:\(…\))?` \|", GUIDE, re.MULTILINE):
        assert status in {"PRESENT", "GIVEN", "NULL", "STALE", "NOT_FOUND", "TIMEOUT", "FP_MISMATCH", "DEFAULTED"}
    assert all(f'"{status}"' in response.parameters["podium_features"].string_param for status in statuses)

    podium(home, *command("audit"))
    podium(home, "features", "diff", "features.py", MODEL)
    assert "carrier_arrivals@1" in podium(home, "features", "usage", "--definitions", "features.py")
    # what was served is not what another log would have taught
    write_log(home / "arrivals.parquet", {**events, "late": ~events["late"]})
    podium(home, *command("audit"), status=10)
    (home / "features.py").write_text(block("python").replace("seen + 10", "seen + 12"))
    assert "10" in podium(home, "features", "diff", "features.py", MODEL, status=10)
