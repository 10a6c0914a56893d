"""Who uses a version's folder: a server that has loaded it leases it, and whoever would remove it must hold it alone.

Floor 2. A lease is a shared `flock` on the folder itself, the right to remove an exclusive one: nothing is written, so a
read-only mount will do, and the kernel ends both with the process, however that ends. Never decides what is removed.

Limits: `flock` says nothing across hosts on file systems that keep it local, and nothing at all on some. There the lease is
empty and a removal refused (`hold`), because nobody could say that the version is not in use.
"""

import errno
import fcntl
import logging
import os
import time
from pathlib import Path

from server.core.errors import RegistryError

_WAIT_S = 5.0
"""A registration holds its folder for a moment longer than it is hidden, and a prune while it renames: both are over soon."""
_STEP_S = 0.01
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF})

_log = logging.getLogger(__name__)


class Hold:
    """An open folder, and the lock on it (none where its file system has none).

    Ownership: whoever holds it last calls `release`.
    """

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def lease(folder: Path, wait_s: float = _WAIT_S) -> Hold:
    """Keep a version's folder from being removed until the lease is released, or this process ends.

    Raises: RegistryError where the folder is gone, is being removed, or cannot be opened.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        raise RegistryError(f"version {folder.name} was removed") from None
    except OSError as error:
        raise RegistryError(f"the folder of version {folder.name} cannot be opened: {error.strerror}") from None
    held = Hold(handle)
    try:
        _share(handle, folder, wait_s)
        # opened before it was renamed away, locked afterwards: a lease on a folder that nobody finds any more
        if not _still_there(handle, folder):
            raise RegistryError(f"version {folder.name} was removed")
    except BaseException:
        held.release()
        raise
    return held


def hold(folder: Path) -> Hold | None:
    """The right to remove a version's folder; None while anybody leases it. New leases wait until it is released.

    Raises: OSError where the folder is gone or its file system has no locks.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return Hold(handle)


def _share(handle: int, folder: Path, wait_s: float) -> None:
    # not one call that blocks: a stopped process must not stop the one thread that loads
    until_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                raise RegistryError(f"version {folder.name} is held by whoever writes or removes it") from None
            time.sleep(_STEP_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise RegistryError(f"version {folder.name} cannot be leased: {error.strerror}") from None
            _log.warning(
                "version folders cannot be leased here (%s): nothing keeps %s from being pruned", error.strerror, folder
            )
            return
        else:
            return


def _still_there(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False
