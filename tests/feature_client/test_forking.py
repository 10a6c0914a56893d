"""What a forked child inherits while other threads of its parent are at work."""

import os
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest

from feature_client.cache import RowCache
from feature_client.feast import FeastReader
from feature_client.feast_view import feast_view
from feature_client.memory_store import MemoryStore
from feature_client.reader import Reader, Wanted
from feature_client.row import pack
from feature_client.schema import Feature, Status
from tests.feature_client.views import route

FEAST = feast_view("f", entity="e", keys={"id": "int64"}, features=[Feature("x", "int64", 0)])


def of_memory() -> tuple[threading.Lock, Callable[[], bool]]:
    store = MemoryStore()
    row = bytes(40)
    store.write([(b"k", row)], 0)
    return store._lock, lambda: store.read([b"k"], 1.0) == [row]


def of_the_reader() -> tuple[threading.Lock, Callable[[], bool]]:
    store, instants = MemoryStore(), np.zeros(1, np.int64)
    values = {"route_flights": np.array([3]), "route_delay": np.array([0.5])}
    rows = pack(route, 7, values, np.zeros((1, 2), np.bool_), instants, instants)
    store.write([(b"k", rows[0])], 0)
    reader = Reader(store, RowCache(2**20))
    reader.read([Wanted(route, 7, [b"k"])], 1.0)

    def works() -> bool:
        empty = reader.store_reading().remembered_bytes == 0
        return empty and reader.read([Wanted(route, 7, [b"k"])], 1.0)[0].values["route_flights"].tolist() == [3]

    return reader._lock, works


def of_feast() -> tuple[threading.Lock, Callable[[], bool]]:
    reader = FeastReader("redis://127.0.0.1:1", "p")
    ids = {"id": np.array([1])}
    return reader._lock, lambda: reader.read(FEAST, ids, 0.5).row_status.tolist() == [Status.TIMEOUT]


@pytest.mark.parametrize("subject", [of_memory, of_the_reader, of_feast])
def test_a_lock_that_another_thread_holds_is_free_in_the_child(
    subject: Callable[[], tuple[threading.Lock, Callable[[], bool]]],
) -> None:
    lock, works = subject()
    with lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends it, should it wait for ever
            try:
                os._exit(0 if works() else 1)
            finally:
                os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert works() or subject is of_the_reader
