"""For applications: features of entities by the names of views, from threads or from asyncio. Needs numpy and redis only.

What the server does with the rows of a batch is done here with those of a call: keys, one question, and what is served now.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from feature_client.async_reader import AsyncReader
from feature_client.cache import RowCache
from feature_client.definitions import Definitions, definitions_of, load_definitions
from feature_client.errors import DefinitionError, EntityError, StoreError
from feature_client.feast import FeastReader
from feature_client.feast_view import FeastView
from feature_client.fingerprint import stamp_of
from feature_client.keys import misfits, row_keys
from feature_client.opening import open_store
from feature_client.reader import Reader, StoreReading, ViewReading, Wanted
from feature_client.schema import Array, Columns
from feature_client.served import Served, serve
from feature_client.store import Key
from feature_client.view import View

BUDGET_S = 0.01
CACHE_BYTES = 64 * 2**20
_NO_KEY = b"f1:"
"""The key of no row: what a value that cannot be a join key is looked for under, so that its row is NOT_FOUND."""

Given = Definitions | Sequence[Path] | Iterable[View]


class _Known:
    """Stored views by reference, and what rows of them must carry."""

    def __init__(self, definitions: Given, project: str) -> None:
        loaded = _loaded(definitions)
        stored = {ref: view for ref, view in loaded.views.items() if view.kind == "stored"}
        self._views = {ref: (view, stamp_of(loaded.descriptions[ref].fingerprint)) for ref, view in stored.items()}
        self._project = project

    def view(self, ref: str) -> View:
        """Raises: DefinitionError naming what there is."""
        if ref not in self._views:
            raise DefinitionError(f"there is no stored view '{ref}'; there is: {', '.join(self._views) or 'none'}")
        return self._views[ref][0]

    def wanted(self, view: View, keys: Mapping[str, Any]) -> Wanted:
        """What to ask for. Raises: EntityError for columns that cannot be join keys at all."""
        return Wanted(view, self._views[view.ref][1], _row_keys(self._project, view, columns_of(keys)))


class FeatureClient:
    """From threads. Ownership: opens a store and closes it; give it one to keep that to yourself.

    `definitions`: files, views, or what `load_definitions` gave. `url`: as `open_store` takes it. `feast`: who reads the views
    that Feast writes. `fail_on_timeout`: whether rows are refused for which the store did not answer. Raises: DefinitionError,
    StoreError.
    """

    def __init__(
        self,
        definitions: Given,
        url: str = "",
        project: str = "podium",
        *,
        feast: FeastReader | None = None,
        cache_bytes: int = CACHE_BYTES,
        fail_on_timeout: bool = False,
    ) -> None:
        self._known = _Known(definitions, project)
        self._feast = feast
        self._fail_on_timeout = fail_on_timeout
        self._store = open_store(url)
        self._reader = Reader(self._store, RowCache(cache_bytes) if cache_bytes else None)

    def read(self, view: str, keys: Mapping[str, Any], budget_s: float = BUDGET_S) -> Served:
        """The features of N entities as they are served now, within the budget; what the store did not say is a status.

        `view`: `name@version`. `keys`: per join key N integers, or N texts or bytes, as an array or a sequence. A value that
        cannot be a key is an entity without a row, and harms no other. Raises: DefinitionError for a view that there is not;
        EntityError for columns that cannot be join keys at all.
        """
        asked = self._known.view(view)
        if isinstance(asked, FeastView):
            if self._feast is None:
                raise DefinitionError(f"'{view}' is written by Feast: this client needs a FeastReader")
            found = self._feast.read(asked, columns_of(keys), budget_s)
        else:
            (found,) = self._reader.read([self._known.wanted(asked, keys)], budget_s)
        return serve(asked, found, time.time_ns() // 1000, fail_on_timeout=self._fail_on_timeout)

    def readings(self) -> Sequence[ViewReading]:
        """As `Reader.readings`."""
        return self._reader.readings()

    def store_reading(self) -> StoreReading:
        """As `Reader.store_reading`."""
        return self._reader.store_reading()

    def close(self) -> None:
        """Let go of the store. Idempotent."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncFeatureClient:
    """From the event loop that it is first used in, for thousands of callers there; see `AsyncReader`.

    Arguments as those of `FeatureClient`; `url` "" is `REDIS_URL`, and there must be one. Raises: DefinitionError, StoreError.
    """

    def __init__(
        self,
        definitions: Given,
        url: str = "",
        project: str = "podium",
        *,
        cache_bytes: int = CACHE_BYTES,
        fail_on_timeout: bool = False,
    ) -> None:
        found = url or os.environ.get("REDIS_URL", "")
        if not found:
            raise StoreError("an asynchronous client needs the URL of a Redis, or REDIS_URL")
        self._known = _Known(definitions, project)
        cache = RowCache(cache_bytes) if cache_bytes else None
        self._reader = AsyncReader(found, cache, fail_on_timeout=fail_on_timeout)

    async def read(self, view: str, keys: Mapping[str, Any], budget_s: float = BUDGET_S) -> Served:
        """As `FeatureClient.read`, but for views that Feast writes. Ownership: as of `AsyncReader.read`."""
        asked = self._known.view(view)
        if isinstance(asked, FeastView):
            raise DefinitionError(f"'{view}' is written by Feast: it is read from threads only")
        (served,) = await self._reader.serve([self._known.wanted(asked, keys)], budget_s)
        return served

    def readings(self) -> Sequence[ViewReading]:
        """As `Reader.readings`."""
        return self._reader.readings()

    def store_reading(self) -> StoreReading:
        """As `Reader.store_reading`."""
        return self._reader.store_reading()

    async def close(self) -> None:
        """Answer everybody, then let go of connections. Idempotent."""
        await self._reader.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def columns_of(keys: Mapping[str, Any]) -> dict[str, Array]:
    """Columns of join keys from arrays and sequences; texts as their UTF-8. Shapes: `[N]`."""
    return {name: values if isinstance(values, np.ndarray) else _column(values) for name, values in keys.items()}


def _column(values: Sequence[Any]) -> Array:
    if all(type(value) is int for value in values):
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            pass  # one of them cannot be a key, and is told so by itself
    column = np.empty(len(values), dtype=object)
    column[:] = [value.encode() if isinstance(value, str) else value for value in values]
    return column


def _row_keys(project: str, view: View, columns: Columns) -> list[Key]:
    try:
        return row_keys(project, view, columns)
    except EntityError:
        bad = misfits(view, columns)
        columns = {name: columns[name] for name in view.entity.keys} if view.entity else {}
        count = len(next(iter(columns.values())))
        if not bad or any(len(column) != count for column in columns.values()):
            raise
    good = [row for row in range(count) if row not in bad]
    made = row_keys(project, view, {name: column[good] for name, column in columns.items()})
    keys = [_NO_KEY] * count
    for row, key in zip(good, made, strict=True):
        keys[row] = key
    return keys


def _loaded(definitions: Given) -> Definitions:
    if isinstance(definitions, Definitions):
        return definitions
    given = list(definitions)
    views = [each for each in given if isinstance(each, View)]
    paths = [each for each in given if isinstance(each, Path)]
    if len(views) == len(given):
        return definitions_of(views)
    if len(paths) == len(given):
        return load_definitions(paths)
    raise DefinitionError("definitions are files, or views, not both")
