"""When to look at the repository again: on file events, and at the latest every `rescan_s`.

Floor 2. Says only *that* something may have changed; `source` finds out what. The timer is the promise and events only make
it faster, since network file systems and exhausted watch limits give none.
"""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from watchfiles import watch

from server.registry.names import INCOMING_PREFIX, MEASURED_FOLDER, PRUNED_PREFIX

logger = logging.getLogger(__name__)

_STEP_MS = 50
_GROUP_MS = 500
_TURN_MS = 250


def changes(root: Path, stop: threading.Event, rescan_s: float) -> Iterator[None]:
    """Yield once as soon as the watch stands, then whenever files changed, and at least every `rescan_s` seconds.

    The first yield closes the gap: what changed between an earlier scan and the start of the watch is seen by the scan
    that follows it. Ends soon after `stop` is set. Changes inside a version that is still being registered count only
    once it is there, those inside one that was taken away not at all, nor does what a load has measured.

    Ownership: one thread iterates, any may set `stop`.
    """
    due = time.monotonic()
    try:
        for events in watch(
            root,
            watch_filter=None,
            debounce=_GROUP_MS,
            step=_STEP_MS,
            stop_event=stop,
            rust_timeout=_TURN_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            ignore_permission_denied=True,
        ):
            if time.monotonic() >= due or any(_visible(path, root) for _, path in events):
                yield None
                due = time.monotonic() + rescan_s
    except OSError as error:
        logger.warning("no file events for %s (%s): looking every %g s instead", root, error, rescan_s)
    while not stop.wait(max(0.0, due - time.monotonic())):
        yield None
        due = time.monotonic() + rescan_s


def _visible(path: str, root: Path) -> bool:
    return not any(
        part.startswith((INCOMING_PREFIX, PRUNED_PREFIX, MEASURED_FOLDER)) for part in Path(path).parts[len(root.parts) :]
    )
