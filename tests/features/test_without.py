"""A server without definitions."""

from pathlib import Path

import pytest

from server.core.errors import LoadFailed
from server.core.feature_settings import FeatureStoreSettings
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.features.without import NoFeatures
from server.optional import open_features
from tests.features.examples import model


def test_versions_that_were_trained_on_features_are_refused_and_others_served(tmp_path: Path) -> None:
    features = open_features(FeatureStoreSettings())
    assert isinstance(features, NoFeatures)
    features.bind(VersionKey("m", 1), tmp_path, ModelSettings(), model())
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(
        LoadFailed, match=r"'m' was trained on features \(features.json\), but this server has no definitions: set"
    ):
        features.bind(VersionKey("m", 1), tmp_path, ModelSettings(), model())
    features.readings()
    features.close()
