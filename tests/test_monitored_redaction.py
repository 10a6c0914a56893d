"""Rows that wait for a sink are redacted as their version was, also when that has left before they are written."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from server.core.monitoring_settings import ModelMonitoring, MonitoringSettings, ParquetSettings
from server.core.settings import ModelSettings
from server.lifecycle.published import Published
from server.monitored import Monitored
from server.monitoring.parquet_tables import read_samples
from tests.monitoring.rows import KEY, rows_of


def published(*replicas: Any) -> Published:
    """A table of what serves. Replicas have as much of one as monitoring looks at."""
    ready = {each.key: each for each in replicas}
    defaults = {each.key.model: each.key.version for each in replicas}
    return Published({}, {}, {}, frozenset(), defaults, ready)


def test_a_version_that_has_left_is_still_redacted(tmp_path: Path) -> None:
    settings = ModelSettings(monitoring=ModelMonitoring(redact=("user", "amount")))
    signature = SimpleNamespace(inputs=(), outputs=(), max_batch=0)
    replica = SimpleNamespace(key=KEY, settings=settings, features=None, baseline=None, signature=signature)
    monitored = Monitored(MonitoringSettings(parquet=ParquetSettings(dir=str(tmp_path))))
    monitored.follow(published(replica))
    monitored.follow(published())
    assert monitored.sampler is not None
    samples = rows_of(20)
    for lane in monitored.sampler._lanes:
        lane.offer(samples, samples.rows, samples.nbytes)
    monitored.close()
    table = read_samples(tmp_path, KEY.model, KEY.version, 0, 2**62)
    assert table.num_rows == 20
    assert not [name for name in table.column_names if "user" in name or "amount" in name]
    assert "callers.at" in table.column_names
