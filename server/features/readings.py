"""What a scrape is told of features. Pure: values, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.core.versions import VersionKey


@dataclass(frozen=True, slots=True)
class FeatureReading:
    """Totals since the process began, which never fall.

    `values`: how many values were served, by view (`name@version`) and status as it is shown (`status_text`).
    `contracts`: whether the last load of a version with features found what is installed to be what was recorded.
    `store`: what `Reader.readings` says; None of one version alone.
    """

    values: Mapping[tuple[str, str], int]
    contracts: Mapping[VersionKey, bool] = field(default_factory=dict)
    store: Any = None
