"""What a scrape is told of features: what `server.telemetry` needs of them. Pure: values, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FeatureReading:
    """Totals since the process began, which never fall.

    `values`: how many values were served, by view (`name@version`) and status as it is shown (`status_text`). `contracts`: by
    model and version, whether the last load with features found that what is installed is what was recorded. Of the store, for
    all versions together: `calls`, those of them that brought nothing by kind, `keys` that were wanted, `cached_keys` of them
    that were remembered, and whether it is not asked now. `samples_dropped`: rows lost on the way to the audit's file.
    """

    values: Mapping[tuple[str, str], int]
    contracts: Mapping[tuple[str, int], bool] = field(default_factory=dict)
    calls: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    keys: int = 0
    cached_keys: int = 0
    breaker_open: bool = False
    samples_dropped: int = 0
