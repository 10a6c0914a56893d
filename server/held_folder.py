"""A folder that one process has to itself. Roof."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.core.errors import Unsupported

_log = logging.getLogger("podium.monitoring")


@contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """Hold the folder in which a monitor remembers. Raises: OSError; Unsupported where another process holds it."""
    if folder is None:
        _log.info("monitoring.dir is not stated: what is found does not outlive this process")
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unsupported(f"another process monitors in '{folder}'") from None
        yield
    finally:
        os.close(handle)
