"""The loop of the thread `podium-watch`: whenever files may have changed, the manager is told to look.

Floor 4: what tells of changes is handed in, what they mean is the manager's. Never reads the repository itself.
"""

import logging
import threading
from collections.abc import Callable, Iterator

_RETRY_WATCH_S = 5.0

_log = logging.getLogger(__name__)


def watch(changes: Callable[[threading.Event], Iterator[None]], wake: Callable[[], None], stop: threading.Event) -> None:
    """Call `wake` for every item of `changes(stop)`, until `stop` is set. A watch that breaks is begun anew, with a `wake`."""
    while not stop.is_set():
        try:
            for _ in changes(stop):
                wake()
            return
        except Exception:  # noqa: BLE001 - a watch that broke (limits, a remount) is begun anew, or updates go unseen
            _log.exception("watching the repository failed")
            stop.wait(_RETRY_WATCH_S)
            wake()
