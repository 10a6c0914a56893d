"""Settings of features: what is refused, and what stands in."""

from typing import Any

import pytest
from pydantic import ValidationError

from server.core.feature_settings import FeatureStoreSettings, ModelFeatures, PackedInput, ViewSettings
from server.core.settings import ModelSettings, ServerSettings


def test_without_definitions_a_server_has_no_features() -> None:
    settings = ServerSettings(repository="models").features
    assert settings == FeatureStoreSettings()
    assert (settings.definitions, settings.store, settings.audit_file) == ((), "", "")
    assert ModelSettings().features is None


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"project": "a:b"}, "project\n  String should match pattern"),
        ({"project": ""}, "project\n  String should match pattern"),
        ({"budget_us": 0}, "greater than 0"),
        ({"budget_us": 10_000_001}, "less than or equal to 10000000"),
        ({"budget_of_deadline": 1.1}, "less than or equal to 1"),
        ({"audit_of_rows": 0}, "greater than 0"),
        ({"cache_bytes": -1}, "greater than or equal to 0"),
        ({"definition": ["f.py"]}, "Extra inputs are not permitted"),
    ],
)
def test_what_a_server_cannot_mean_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        FeatureStoreSettings.model_validate(values)


VIEWS = [{"view": "a@1"}, {"view": "b@12", "keys": {"carrier": "airline"}}]


def test_what_a_model_can_mean_is_kept() -> None:
    made = ModelFeatures.model_validate(
        {"views": VIEWS, "inputs": [{"name": "x", "columns": ["f", "g"]}], "as_of": "at_us", "on_timeout": "fail"}
    )
    assert made.views == (ViewSettings(view="a@1"), ViewSettings(view="b@12", keys={"carrier": "airline"}))
    assert made.inputs == (PackedInput(name="x", columns=("f", "g")),)
    assert ModelFeatures.model_validate({"views": VIEWS}).on_timeout == "default"
    assert len(ModelFeatures.model_validate({"views": [{"view": "a@1"}, {"view": "a@2"}]}).views) == 2


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"views": []}, "at least 1 item"),
        ({"views": [{"view": "a"}]}, "String should match pattern"),
        ({"views": [{"view": "a@0"}]}, "String should match pattern"),
        ({"views": [{"view": "a@1"}, {"view": "a@1", "keys": {"k": "l"}}]}, "views must be distinct"),
        ({"views": VIEWS, "inputs": [{"name": "x", "columns": []}]}, "at least 1 item"),
        (
            {"views": VIEWS, "inputs": [{"name": "x", "columns": ["f"]}, {"name": "x", "columns": ["g"]}]},
            "inputs must be distinct",
        ),
        ({"views": VIEWS, "inputs": [{"name": "x", "columns": ["f", "f"]}]}, "columns of inputs must be distinct"),
        (
            {"views": VIEWS, "inputs": [{"name": "x", "columns": ["f"]}, {"name": "y", "columns": ["f"]}]},
            "columns of inputs must be distinct",
        ),
        ({"views": VIEWS, "on_timeout": "wait"}, "'default' or 'fail'"),
        ({"views": VIEWS, "inputs": [{"name": "x", "columns": ["f"], "order": 1}]}, "Extra inputs are not permitted"),
    ],
)
def test_what_a_model_cannot_mean_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        ModelFeatures.model_validate(values)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"cache": {"max_bytes": 1}}, "a model with features cannot have a response cache"),
        ({"decoupled": True}, "a decoupled model cannot have features"),
    ],
)
def test_what_does_not_go_together_with_features_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        ModelSettings.model_validate({"features": {"views": VIEWS}, **values})
