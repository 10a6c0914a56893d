"""What the repository has of the versions that `podium monitor` hears of. Roof: the registry and the loading of baselines meet.

A version is looked up when its first rows come, so a large repository costs a scan now and then, and no baseline that nobody
needs.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from server.core.errors import PodiumError
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.monitoring.baseline import Baseline
from server.monitoring.baseline_document import BASELINE_FILE
from server.optional import read_baseline
from server.registry.durable import digest_file
from server.registry.source import FoundModel, FoundVersion, LocalDirectory

_SCAN_S = 5.0
"""A version that is not known is looked for at most so often: rows of one that was just written come soon after."""
_log = logging.getLogger("podium.monitoring")

Found = tuple[ModelSettings, Baseline | None]


class MonitoredVersions:
    """Ownership: one thread."""

    def __init__(self, repository: Path, settle_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._directory = LocalDirectory(repository, settle_s)
        self._now_s = now_s
        self._scanned_s = float("-inf")
        self._models: dict[str, FoundModel] = {}
        self._known: dict[VersionKey, tuple[str, ModelSettings, Found | None]] = {}

    def find(self, key: VersionKey) -> Found | None:
        """Settings and baseline of a version, the same object while its files are the same; None for what is not monitored."""
        if self._now_s() - self._scanned_s >= _SCAN_S:
            self._scan()
        model = self._models.get(key.model)
        version = None if model is None else model.versions.get(key.version)
        if model is None or model.settings is None or version is None:
            self._known.pop(key, None)
            return None
        known = self._known.get(key)
        if known is None or known[:2] != (version.stamp, model.settings):
            known = self._known[key] = version.stamp, model.settings, _found(version, model.settings)
        return known[2]

    def _scan(self) -> None:
        self._scanned_s = self._now_s()
        try:
            self._models = self._directory.scan()
        except PodiumError as error:
            _log.error("the repository cannot be read", extra={"reason": str(error)})


def _found(version: FoundVersion, settings: ModelSettings) -> Found | None:
    if not settings.monitoring.enabled or settings.decoupled:
        return None
    try:
        manifest = version.manifest
        promised = None if manifest is None else manifest.files.get(BASELINE_FILE)
        if promised is not None and digest_file(version.folder / BASELINE_FILE) != promised:
            raise ValueError(f"{BASELINE_FILE} is not the one of its manifest")
        baseline = read_baseline(version.folder)
    except (PodiumError, OSError, ValueError) as error:
        # not judged by what it learns instead: that would hide what is wrong
        _log.error("a version is not monitored", extra={"model": str(version.key), "reason": str(error)})
        return None
    return without_redacted(settings), baseline


def without_redacted(settings: ModelSettings) -> ModelSettings:
    """The same settings for who never gets redacted columns: they are ignored, not missing."""
    monitoring = settings.monitoring
    if not monitoring.redact:
        return settings
    gone = set(monitoring.redact)
    packed = () if settings.features is None else settings.features.inputs
    gone |= {each.name for each in packed if not gone.isdisjoint(each.columns)}
    ignore = (*monitoring.ignore, *sorted(gone.difference(monitoring.ignore)))
    return settings.model_copy(update={"monitoring": monitoring.model_copy(update={"ignore": ignore})})
