"""Which store there is, found in a fixed order, and said in one log line: passwords never are."""

import logging
import os
from collections.abc import Mapping

from feature_client.embedded import EmbeddedServer, server_program
from feature_client.errors import StoreError
from feature_client.memory_store import MemoryStore
from feature_client.redis_store import RedisStore
from feature_client.store import Store

LOCAL = "redis://127.0.0.1:6379/0"
_PROBE_S = 0.25
"""How long a local server has to answer. It is asked once, when a process starts."""
_REACHED_S = 5.0
_log = logging.getLogger(__name__)


def open_store(url: str = "", *, require: bool = False, environ: Mapping[str, str] = os.environ, local: str = LOCAL) -> Store:
    """The first that there is: `url`, the URL in `REDIS_URL`, a local server, an embedded one, this process itself.

    A URL is taken at its word, whether it can be reached yet or not: the store opens, its reads fail until the server is there,
    and then they do not. `require`: then it must be reached now. `memory://` asks for this process itself, `embedded://` for a
    server of one's own. Ownership: whoever opens a store closes it, and with it what was started for it.
    Raises: StoreError.
    """
    why = "as told"
    if not url and environ.get("REDIS_URL"):
        url, why = environ["REDIS_URL"], "from REDIS_URL"
    if url == "memory://":
        return _memory(why)
    if url == "embedded://":
        return _embedded(why)
    if url:
        return _redis(url, why, require=require)
    nearby = RedisStore(local, connect_timeout_s=_PROBE_S)
    try:
        nearby.ping(_PROBE_S)
    except StoreError as error:
        nearby.close()
        absent = f"REDIS_URL is not set; {error}"
    else:
        _log.info("features: store %s (REDIS_URL is not set, and a local server answers)", nearby.name)
        return nearby
    if server_program() is None:
        return _memory(f"{absent}; no server program is installed; rows end with this process")
    try:
        return _embedded(f"{absent}; rows end with this process")
    except StoreError as error:
        return _memory(f"{absent}; {error}; rows end with this process")


def _redis(url: str, why: str, *, require: bool) -> Store:
    store = RedisStore(url)
    try:
        store.ping(_REACHED_S)
    except StoreError as error:
        if require:
            store.close()
            raise
        _log.warning("features: store %s (%s), which does not answer yet: %s", store.name, why, error)
    else:
        _log.info("features: store %s (%s)", store.name, why)
    return store


def _embedded(why: str) -> Store:
    server = EmbeddedServer()
    _log.info("features: store embedded (%s)", why)
    return RedisStore(server.url, name="embedded", on_close=server.close)


def _memory(why: str) -> Store:
    _log.info("features: store memory (%s)", why)
    return MemoryStore()
