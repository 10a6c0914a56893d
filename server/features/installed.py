"""The features of a server: the definitions that the operator installed, the store they are read from, and the gate at a load.

Floor 2. One per server; opened before the first version is loaded, closed after the last one has left.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from feature_client.breaker import Breaker, State
from feature_client.cache import RowCache
from feature_client.contract import Contract, read_contract
from feature_client.contract_files import DOCUMENT_FILE
from feature_client.definitions import Definitions, load_definitions
from feature_client.errors import FeatureError
from feature_client.feast import FeastReader
from feature_client.feast_view import FeastView
from feature_client.feature_set import FeatureSet
from feature_client.fingerprint import stamp_of
from feature_client.opening import open_store
from feature_client.reader import Reader
from feature_client.samples import SampleWriter
from feature_client.schema import US_PER_S
from feature_client.store import Store
from server.core.errors import LoadFailed, Unsupported
from server.core.feature_settings import FeatureStoreSettings, ModelFeatures
from server.core.settings import ModelSettings
from server.core.signature import Signature
from server.core.versions import VersionKey
from server.features.binding import bind
from server.features.bound import Bound, Supply
from server.features.counts import Counts
from server.features.readings import FeatureReading

_log = logging.getLogger("podium.features")
KEPT_VERDICTS = 1024
"""Versions of which it is known how their last load went; the one loaded longest ago is forgotten first."""


def wall_us() -> int:
    """The instant that the age of rows is judged at: microseconds since 1970."""
    return time.time_ns() // 1000


class Installed:
    """Binds versions, at their load, to what is installed. Thread-safe. Ownership: of the store and the sampler."""

    def __init__(
        self,
        definitions: Definitions,
        store: Store,
        settings: FeatureStoreSettings,
        *,
        sampler: SampleWriter | None = None,
        feast: FeastReader | None = None,
        now_us: Callable[[], int] = wall_us,
    ) -> None:
        self._definitions = definitions
        self._store = store
        self._sampler = sampler
        cache = RowCache(settings.cache_bytes, settings.cache_ttl_us / US_PER_S) if settings.cache_bytes else None
        self._reader = Reader(store, cache, Breaker())
        self._feast = feast
        self._supply = Supply(self._reader, settings.project, now_us, sampler, feast)
        self._lock = threading.Lock()
        self._counts = Counts()
        self._verdicts: dict[VersionKey, bool] = {}

    def bind(self, key: VersionKey, folder: Path, settings: ModelSettings, signature: Signature) -> Bound | None:
        """The load gate: what is installed must be what the version was trained on, and fit what the model takes.

        None for a version that was trained without features. Raises: LoadFailed with every difference, and what to do about it.
        """
        try:
            contract = read_contract(folder)
            bound = None if contract is None else self._bind(key, contract, settings.features, signature)
        except FeatureError as error:
            self._judge(key, holds=False)
            raise LoadFailed(str(error)) from error
        except LoadFailed:
            self._judge(key, holds=False)
            raise
        if bound is not None:
            self._judge(key, holds=True)
            return bound
        with self._lock:
            self._verdicts.pop(key, None)
        if settings.features is not None:
            _log.info("version without features", extra={"model": str(key), "reason": f"its folder has no {DOCUMENT_FILE}"})
        return None

    def readings(self) -> FeatureReading:
        """Of all versions together."""
        with self._lock:
            verdicts = {(key.model, key.version): each for key, each in self._verdicts.items()}
        store = self._reader.store_reading()
        return FeatureReading(
            self._counts.readings(),
            verdicts,
            calls=store.calls,
            failures=store.failures,
            keys=sum(sum(each.rows.values()) for each in self._reader.readings()),
            cached_keys=store.keys_fresh,
            breaker_open=store.breaker != State.CLOSED.value,
            samples_dropped=0 if self._sampler is None else self._sampler.dropped_rows,
        )

    def close(self) -> None:
        """Idempotent. No version may be in service any more."""
        if self._sampler is not None:
            self._sampler.close()
        if self._feast is not None:
            self._feast.close()
        self._store.close()

    def _judge(self, key: VersionKey, *, holds: bool) -> None:
        with self._lock:
            self._verdicts.pop(key, None)
            self._verdicts[key] = holds
            if len(self._verdicts) > KEPT_VERDICTS:
                del self._verdicts[next(iter(self._verdicts))]

    def _bind(self, key: VersionKey, contract: Contract, settings: ModelFeatures | None, signature: Signature) -> Bound:
        refs = list(contract.views)
        if settings is None:
            tables = ", ".join(f'{{ view = "{ref}" }}' for ref in refs)
            raise LoadFailed(f"this version was trained on features: model.toml needs [features] with views = [{tables}]")
        # other views are other versions': those of one model share its settings
        own = [each for each in settings.views if each.view in contract.views]
        if len(own) != len(refs):
            asked, known = (", ".join(sorted(each)) for each in ((each.view for each in settings.views), refs))
            raise LoadFailed(f"model.toml names the views {asked}, but this version was trained on {known}")
        settings = settings.model_copy(update={"views": tuple(own)})
        contract.check(self._definitions)
        features = FeatureSet([self._definitions.views[ref] for ref in refs], contract.states)
        of_feast = [view.ref for view in features.stored if isinstance(view, FeastView)]
        if of_feast and self._feast is None:
            raise LoadFailed(f"{', '.join(of_feast)}: Feast's rows are read where the server's features.feast_store says")
        binding = bind(features, settings, signature, contract.reads)
        stamps = {view.ref: stamp_of(self._definitions.fingerprints[view.ref]) for view in features.stored}
        return Bound(key, binding, self._supply, stamps, self._counts, fail_on_timeout=settings.on_timeout == "fail")


def open_installed(settings: FeatureStoreSettings) -> Installed:
    """Load definitions, open the store and the file of the audit. Raises: Unsupported, with what is wrong."""
    try:
        definitions = load_definitions([Path(each) for each in settings.definitions])
        store = open_store(settings.store)
    except (FeatureError, OSError) as error:
        raise Unsupported(str(error)) from error
    sampler, feast = None, None
    setting = "feast_store"
    try:
        if settings.feast_store:
            feast = FeastReader(settings.feast_store, settings.feast_project)
        setting = "audit_file"
        if settings.audit_file:
            sampler = SampleWriter(Path(settings.audit_file), settings.audit_of_rows, settings.audit_max_bytes)
    except FeatureError as error:
        store.close()
        raise Unsupported(f"{setting}: {error}") from error
    _log.info("features are installed", extra={"views": sorted(definitions.views), "store": store.name})
    return Installed(definitions, store, settings, sampler=sampler, feast=feast)
